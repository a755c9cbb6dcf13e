"""Fused kernels on give the run that kernels off give, through the whole recipe: full and LoRA, padded and packed."""

import json

import pytest
from safetensors.torch import load_file

from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.loggers.jsonl import read_jsonl
from comparing import weight_change_difference

ALL = ["glu", "lora", "rms_norm", "rope"]
CHANGES = ("glu: 2 x LlamaMLP", "rms_norm: 5 x LlamaRMSNorm", "rope: 2 x LlamaAttention")
ADAPTERS = "lora: 14 x LoRALayer"


def train(config, out):
    """Rows of the training steps, trained tensors before and after, and the reports of the edits."""
    config = {**config, "checkpoint": {"checkpoint_dir": str(out)}}
    recipe = LLMFinetuneRecipe(config_from_dict(config), TrainOptions(quiet=True))
    try:
        recipe.setup()
        trained = {name: p for name, p in recipe.unwrapped().named_parameters() if p.requires_grad}
        before = {name: p.detach().clone() for name, p in trained.items()}
        recipe.train()
        after = {name: p.detach().clone() for name, p in trained.items()}
    finally:
        recipe.close()
    rows = [row for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "train"]
    return rows, before, after, "\n".join(map(str, recipe.built.reports))


def with_kernels(config):
    return {**config, "kernels": {"ops": ALL if "peft" in config else ALL[:1] + ALL[2:]}}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_kernels_on_equals_off(tiny_config, tmp_path, lora, packed):
    if lora:
        tiny_config["peft"] = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8}
        tiny_config["optimizer"] = {"_target_": "torch.optim.SGD", "lr": 1.0}
    if packed:
        tiny_config["packed_sequence"] = {"packed_sequence_size": 128}
        tiny_config["step_scheduler"].update(global_batch_size=4, local_batch_size=2)
    off, before, plain, _ = train(tiny_config, tmp_path / "off")
    on, _, fused, report = train(
        {**with_kernels(tiny_config), "loss_fn": {"_target_": "triton_linear_ce"}}, tmp_path / "on"
    )
    for op in (*CHANGES, *([ADAPTERS] if lora else [])):
        assert f"{op} on torch" in report
    assert len(on) == len(off) >= 4
    for a, b in zip(off, on, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    # lora_A of a layer whose lora_B is still zero gets no gradient in the first step only: all have moved by the end.
    assert weight_change_difference(before, plain, fused) <= 1e-5


@pytest.mark.more
def test_triton_itself_runs_a_training_run(tiny_config, chat_rows, cli, tmp_path, monkeypatch):
    """In Triton's interpreter, through the command line: the report names Triton, and the losses are the twins'."""
    rows = [json.loads(line) for line in chat_rows.read_text().splitlines()]
    short = [row for row in rows if sum(len(m["content"]) for m in row["messages"]) < 40][:4]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    tiny_config["dataset"].update(path_or_dataset_id=str(tmp_path / "short.jsonl"), seq_length=64)
    tiny_config["step_scheduler"] = {"global_batch_size": 4, "local_batch_size": 4, "num_epochs": 2}
    tiny_config["peft"] = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8}
    config = {**with_kernels(tiny_config), "loss_fn": {"_target_": "triton_linear_ce"}}
    twins = cli(config, "twins")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = cli({**config, "kernels": {"ops": ALL, "strict": True}}, "triton")
    for op in (*CHANGES, ADAPTERS):
        assert f"{op} on triton" in triton.stdout
        assert f"{op} on torch" in twins.stdout
    assert triton.train("loss") == pytest.approx(twins.train("loss"), rel=1e-5)
    assert triton.train("grad_norm") == pytest.approx(twins.train("grad_norm"), rel=1e-4)
    moved = [tensor for name, tensor in load_file(tmp_path / "triton/final/adapter_model.safetensors").items()]
    assert any(tensor.abs().max() > 0 for tensor in moved)
