import json

import pytest
import torch

from automodel_recipes.cli.app import main
from automodel_recipes.plan.edits import edited, rank_edits
from automodel_recipes.plan.make import make_plan
from automodel_recipes.shipped import find_shipped

QUICK = ["evaluation.exact_match=false", "evaluation.at_start=false", "checkpoint.read_back=false"]


def test_edits_are_ranked_by_what_a_plan_of_each_says(plan_config):
    config = plan_config(step_scheduler={"global_batch_size": 8, "local_batch_size": 8})
    now, edits = rank_edits(config, world_size=1)
    assert now == make_plan(config, world_size=1).estimate.peak().total
    words = [edit.overrides[-1].partition("=")[0] for edit in edits]
    wanted = {
        "loss_fn._target_",
        "step_scheduler.local_batch_size",
        "distributed.activation_checkpointing",
        "dataset.seq_length",
        "peft.alpha",
        "optimizer._target_",
    }
    assert set(words) <= wanted
    assert {"step_scheduler.local_batch_size", "distributed.activation_checkpointing", "dataset.seq_length"} <= set(
        words
    )
    assert [edit.saved_bytes for edit in edits] == sorted((edit.saved_bytes for edit in edits), reverse=True)
    (checkpointing,) = [edit for edit in edits if "activation_checkpointing" in edit.overrides[-1]]
    applied = make_plan(edited(config, checkpointing.overrides), world_size=1).estimate.peak().total
    assert applied == checkpointing.peak_bytes == now - checkpointing.saved_bytes


def test_what_is_there_already_is_not_advised(plan_config):
    config = plan_config(
        distributed={"strategy": "fsdp2", "activation_checkpointing": True},
        loss_fn={"_target_": "fused_linear_ce"},
        peft={"_target_": "lora", "dim": 4},
        step_scheduler={"global_batch_size": 1, "local_batch_size": 1},
    )
    _, edits = rank_edits(config, world_size=1)
    assert {edit.overrides[0].partition("=")[0] for edit in edits} <= {"dataset.seq_length", "optimizer._target_"}


@pytest.mark.more
def test_running_out_of_memory_ends_with_advice(tmp_path, monkeypatch, capsys):
    """A simulated allocator failure in the second step: exit code 3, where, what for, and edits that run as printed."""
    import automodel_recipes.loop as loop

    real = loop.train_step

    def failing(r, micro_batches):
        if r.step_scheduler.step >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(r, micro_batches)

    monkeypatch.setattr(loop, "train_step", failing)
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(find_shipped("demo_full").path), *QUICK, "checkpoint.checkpoint_dir=run"]) == 3
    lines = capsys.readouterr().err.splitlines()
    (head,) = [line for line in lines if line.startswith("error: out of memory")]
    assert "Tried to allocate 2.00 GiB" in head
    assert any("estimate" in line and "activations" in line for line in lines)
    edits = [line for line in lines if line.strip()[:2] in ("1.", "2.", "3.")]
    assert len(edits) == 3
    assert all("saves" in line and "peak" in line for line in edits)
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"


def weights(run):
    from safetensors.torch import load_file

    (file,) = sorted((run / "final").glob("*.safetensors"))
    return load_file(file)


@pytest.mark.more
def test_preflight_leaves_no_trace_in_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(find_shipped("demo_lora").path), *QUICK, "--max-steps", "2", "peft.dropout=0.1"]
    assert main(["train", *words, "checkpoint.checkpoint_dir=plain"]) == 0
    capsys.readouterr()
    assert main(["train", *words, "checkpoint.checkpoint_dir=checked", "--preflight"]) == 0
    assert "longest rows: 1 x 32 x 64 tokens" in capsys.readouterr().out
    plain, checked = weights(tmp_path / "plain"), weights(tmp_path / "checked")
    assert plain.keys() == checked.keys()
    assert all(torch.equal(plain[name], checked[name]) for name in plain)


def test_preflight_meets_the_shortage_before_the_first_step(tmp_path, monkeypatch, capsys):
    import automodel_recipes.preflight as module
    from automodel_recipes.plan import edits

    def failing(r, micro_batches):
        raise MemoryError("no more")

    monkeypatch.setattr(module, "train_step", failing)
    monkeypatch.setattr(edits, "rank_edits_elsewhere", lambda *_, **__: ["1. tested in its own test"])
    monkeypatch.chdir(tmp_path)
    words = [str(find_shipped("demo_lora").path), *QUICK, "--preflight", "checkpoint.checkpoint_dir=run"]
    assert main(["train", *words]) == 3
    assert "out of memory in step 1" in capsys.readouterr().err
    metrics = tmp_path / "run/metrics.jsonl"
    assert not metrics.exists() or '"kind": "train"' not in metrics.read_text()
