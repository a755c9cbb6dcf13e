"""A first configuration for a model and a file of one's own."""

from collections.abc import Mapping
from typing import Any

_LOAD = "automodel_core.NeMoAutoModelForCausalLM.from_pretrained"


def starter_config(
    name: str, *, model: str, data: str, validation: str | None = None, full: bool = False
) -> dict[str, Any]:
    """Text fine-tuning of ``model`` on the conversations in ``data``: LoRA, or every parameter with ``full``.

    ``validation`` holds rows to measure on, in the form of ``data``: at the end of the run, and by ``eval``.

    Returns: the sections, as :func:`automodel_core.config.config_from_dict` takes them.
    """
    config: dict[str, Any] = {
        "recipe": "LLMFinetuneRecipe",
        "seed": 42,
        "model": {"_target_": _LOAD, "pretrained_model_name_or_path": model},
        "peft": {"_target_": "lora", "dim": 16, "alpha": 32},
        "dataset": {"_target_": "chat", "path_or_dataset_id": data, "seq_length": 1024},
        "dataloader": {"shuffle": True},
        "step_scheduler": {
            "global_batch_size": 32,
            "local_batch_size": 4,
            "num_epochs": 1,
            "ckpt_every_steps": 100,
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-5 if full else 2e-4, "weight_decay": 0.0},
        "lr_scheduler": {"lr_decay_style": "cosine"},
        "checkpoint": {"enabled": True, "checkpoint_dir": f"runs/{name}"},
    }
    if full:
        del config["peft"]
    if validation is not None:
        config["validation_dataset"] = {**config["dataset"], "path_or_dataset_id": validation}
    return config


def commented(text: str, comments: Mapping[str, str]) -> str:
    """YAML with a comment line before each of these sections."""
    lines = []
    for line in text.splitlines():
        section = line.partition(":")[0]
        if section in comments and not line.startswith((" ", "-")):
            lines += ["", f"# {' '.join(comments[section].split())}"]
        lines.append(line)
    return "\n".join(lines) + "\n"
