"""Recipes under every layout of ``distributed:``: training, validation, answers, checkpoints and exported weights.

One process is the measure: each layout trains from the same YAML but for its ``distributed`` section, and gives the
same losses, gradient norms, validation losses and generated answers, and weights that plain transformers or PEFT can
read.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layout_runs import MLP_PLAN, LayoutRun, Left, train
from rank_group import run_in_group

LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "ddp": {"strategy": "ddp"},
        "fsdp2": {},
        "hsdp": {"dp_replicate_size": 2},
        "offload": {"cpu_offload": True},
        "zero2 prefetch": {"reshard_after_forward": False, "forward_prefetch": 1, "backward_prefetch": 1},
        "deferred": {"defer_gradient_sync": True},
        "mp": {"mp_policy": {"param_dtype": "float32", "reduce_dtype": "torch.float32"}},
        "ac full": {"activation_checkpointing": True},
        "ac selective": {"activation_checkpointing": "selective"},
        "ac offload": {"activation_checkpointing": {"mode": "full", "every": 2, "offload": True}},
        "compile": {"compile": {"backend": "aot_eager"}},
        "ac budget": {
            "compile": {"backend": "aot_eager"},
            "activation_checkpointing": {"mode": "memory_budget", "budget": 0.5},
        },
        "tp": {"tp_size": 2},
        "tp sp": {"tp_size": 2, "sequence_parallel": True},
        "tp cut logits": {"tp_size": 2, "loss_parallel": True},
        "tp hf": {"tp_size": 2, "tp_plan": "hf"},
        "tp mapping": {
            "tp_size": 2,
            "tp_plan": MLP_PLAN,
        },
        "tp import path": {"tp_size": 2, "tp_plan": "layout_runs:MLP_PLAN"},
        "cp": {"cp_size": 2},
        "cp contiguous": {"cp_size": 2, "cp_load_balanced": False},
        "pp": {"pp_size": 2},
        "pp gpipe": {"pp_size": 2, "pp_schedule": "gpipe", "layers_per_stage": [1, 3]},
        "pp interleaved": {"pp_size": 2, "pp_schedule": "interleaved1f1b", "stages_per_rank": 2},
        "pp zero bubble": {"pp_size": 2, "pp_schedule": "zero_bubble", "stages_per_rank": 2},
    },
    4: {
        "dp2 tp2": {"tp_size": 2},
        "dp2 cp2": {"cp_size": 2},
        "dp2 pp2": {"pp_size": 2},
        "tp2 pp2": {"tp_size": 2, "pp_size": 2},
        "hsdp": {"dp_replicate_size": 2},
    },
}
QUICK = ("fsdp2", "tp sp", "cp", "pp")


def configure(config: dict[str, Any], out: Path, distributed: dict[str, Any], *, lora: bool, packed: bool) -> dict:
    """Four steps of AdamW, two micro-batches or more in each, the last window incomplete, with all that a run does."""
    rows = dict(config["dataset"])
    config = {
        **config,
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 2, "num_epochs": 2, "max_steps": 4},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01, "eps": 1e-4},
        "validation_dataset": rows,
        "evaluation": {"exact_match": True, "at_start": False, "max_new_tokens": 5, "num_rows": 5},
        "checkpoint": {"enabled": True, "checkpoint_dir": str(out)},
        "distributed": {"strategy": "fsdp2", **distributed},
    }
    if lora:
        config["peft"] = {"_target_": "lora", "target_modules": ["*.q_proj", "*.down_proj"], "dim": 4, "alpha": 8}
    if packed:
        config["packed_sequence"] = {"packed_sequence_size": 128}
    return config


@pytest.fixture(scope="session")
def four_layers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with layers enough for four stages."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("four") / "model"
    shutil.copytree(tiny_model, path)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, num_hidden_layers=4)).save_pretrained(path)
    return path


@pytest.fixture
def run_layouts(tiny_config, four_layers, tmp_path):
    """``run(world_size, layouts, **kind)`` -> layout name -> its directory and what it left."""
    tiny_config["model"]["pretrained_model_name_or_path"] = str(four_layers)

    def run(world_size: int, layouts: dict[str, Any], **kind: bool) -> dict[str, tuple[Path, Left]]:
        runs = []
        for name, distributed in layouts.items():
            out = tmp_path / f"{name} {world_size}".replace(" ", "-")
            runs.append(LayoutRun(name, configure(tiny_config, out, distributed, **kind)))
        found = {}
        for item, answers in run_in_group(world_size, train, runs):
            if isinstance(answers, str):
                pytest.fail(f"{item.name}\n{answers}")
            found[item.name] = Path(item.config["checkpoint"]["checkpoint_dir"]), answers[0]
        assert len(found) == len(layouts)
        return found

    return run


def compare(name: str, expected: tuple[Path, Left], got: tuple[Path, Left], *, tolerance: float = 1e-5) -> None:
    for kind, key in (("train", "loss"), ("train", "grad_norm"), ("val", "loss")):
        want = expected[1].of(kind, key)
        assert len(want) == (4 if kind == "train" else 1), name
        # Four steps of AdamW at a large rate let rounding grow; a wrong reduction is off by far more.
        assert got[1].of(kind, key) == pytest.approx(want, rel=tolerance * (10 if key == "grad_norm" else 1)), (
            name,
            key,
        )
    answers = answers_of(got[0])  # rank 0's share
    assert answers, name
    assert answers <= answers_of(expected[0]), name
    want, have = exported(expected[0]), exported(got[0])
    assert want.keys() == have.keys(), name
    for key, tensor in want.items():
        assert (have[key] - tensor).norm() <= 1e-4 * tensor.norm(), (name, key)


def answers_of(run: Path) -> set[tuple[str, str]]:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return {(row["prompt"], row["generated"]) for row in rows}


@functools.cache
def exported(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (run / "final").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_quick(run_layouts, lora: bool) -> None:
    [expected] = run_layouts(1, {"one": {}}, lora=lora, packed=False).values()
    chosen = {name: LAYOUTS[2][name] for name in QUICK}
    for name, got in run_layouts(2, chosen, lora=lora, packed=False).items():
        compare(name, expected, got)


@pytest.mark.more
@pytest.mark.parametrize("kind", ["full", "lora", "packed"])
def test_every_layout(run_layouts, kind: str) -> None:
    settings = {"lora": kind == "lora", "packed": kind == "packed"}
    [expected] = run_layouts(1, {"one": {}}, **settings).values()
    for world_size, layouts in LAYOUTS.items():
        for name, got in run_layouts(world_size, layouts, **settings).items():
            compare(name, expected, got)
