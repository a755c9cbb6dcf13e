"""What the keys of ``checkpoint:`` do to a run's directory, and that what they write loads elsewhere."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from automodel_ckpt import LeaseHeld, VerificationFailed, latest, verify
from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.errors import RunDirectoryError

LORA = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8}
IDS = torch.tensor([[5, 17, 40, 8, 62]])


@pytest.fixture
def train(tiny_config, tmp_path):
    """Train six steps with a checkpoint every second step and these further keys of ``checkpoint:``."""

    def run(*, peft=None, options=None, **keys):
        tiny_config["step_scheduler"]["ckpt_every_steps"] = 2
        tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "run"), **keys}
        if peft is not None:
            tiny_config["peft"] = peft
        recipe = LLMFinetuneRecipe(config_from_dict(tiny_config), options or TrainOptions(quiet=True))
        try:
            recipe.setup()
            recipe.train()
        finally:
            recipe.close()
        return recipe

    return run


def _logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_consolidated_weights_load_in_transformers(train, tmp_path):
    from transformers import AutoModelForCausalLM

    recipe = train(save_consolidated="every", max_recent_checkpoints=1)
    last = sorted((tmp_path / "run" / "hf").iterdir())
    assert [path.name for path in last] == [latest(tmp_path / "run").name]  # pruned with its checkpoint
    for directory in (tmp_path / "run" / "final", last[0]):
        loaded, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
        assert not any(info.values())
        assert torch.equal(_logits(loaded), _logits(recipe.unwrapped()))


def test_adapter_loads_in_peft(train, tmp_path, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = train(peft=LORA, is_async=True, save_consolidated="every")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    plain = _logits(base)
    loaded = _logits(PeftModel.from_pretrained(base, tmp_path / "run" / "final"))
    assert torch.allclose(loaded, _logits(recipe.unwrapped()), atol=1e-5)
    assert not torch.allclose(loaded, plain, atol=1e-2)


def test_stock_dcp_is_written_for_other_tools(train, tmp_path):
    import torch.distributed.checkpoint as dcp

    recipe = train(model_save_format="torch_save", save_consolidated=False, max_recent_checkpoints=2)
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "dcp").iterdir()) == sorted(path.name for path in run.glob("step-*"))
    assert not (run / "final").exists()
    name = "model.embed_tokens.weight"
    found = {"model": {name: torch.zeros_like(recipe.unwrapped().get_parameter(name))}}
    dcp.load(found, checkpoint_id=run / "dcp" / latest(run).name, no_dist=True)
    assert torch.equal(found["model"][name], recipe.unwrapped().get_parameter(name).detach())


def test_background_saves_are_complete_and_recorded(train, tmp_path):
    recipe = train(is_async=True, max_recent_checkpoints=4)
    from automodel_recipes.loggers.jsonl import read_jsonl

    steps = sorted((tmp_path / "run").glob("step-*"))
    assert [int(path.name.removeprefix("step-")) for path in steps] == [2, 3, 4, 6]
    for path in steps:
        verify(path)
    events = [row["path"] for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "checkpoint"]
    assert events == [str(path) for path in steps]


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
def test_gate_stops_a_run_whose_weights_do_not_load(train, tmp_path, monkeypatch, peft):
    """The model is not what its files say; the run finds out before its first step, with LoRA at the first save."""
    from automodel_recipes import weights

    whole = weights.write_weights

    def damaged(r, target, *, overwrite):
        path = whole(r, target, overwrite=overwrite)
        from safetensors.torch import load_file, save_file

        (file,) = path.glob("*.safetensors")
        tensors = load_file(file)
        name = next(name for name in sorted(tensors) if "q_proj" in name)
        tensors[name] = tensors[name] + 0.5
        save_file(tensors, file, metadata={"format": "pt"})
        return path

    monkeypatch.setattr(weights, "write_weights", damaged)
    with pytest.raises(VerificationFailed, match="logits differ"):
        train(peft=peft)
    newest = latest(tmp_path / "run")
    assert newest is None if peft is None else newest.name == "step-00000002"
    assert not list((tmp_path / "run").glob(".*-*"))


def test_gate_can_be_turned_off(train, monkeypatch):
    from automodel_recipes import weights

    monkeypatch.setattr(weights, "check_readable", lambda *_: pytest.fail("was read back"))
    train(read_back=False)


def test_two_runs_cannot_share_a_directory(train, tmp_path):
    (tmp_path / "run").mkdir()
    holder = f"""
        from automodel_ckpt.lease import acquire
        acquire({str(tmp_path / "run")!r})
        print("held", flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(holder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LeaseHeld, match=f"process {process.pid} on .*choose another checkpoint directory"):
            train()
        assert not (tmp_path / "run" / "run.json").exists()
    finally:
        process.communicate("\n", timeout=30)
    train()


def test_a_dry_run_takes_nothing(train, tmp_path):
    train(options=TrainOptions(quiet=True, dry_run=True))
    assert not (tmp_path / "run" / ".lock").exists()
    assert not list((tmp_path / "run").glob("step-*"))


def test_starts_from_a_checkpoint_in_an_object_store(train, tmp_path):
    from automodel_ckpt.directory import open_directory

    recipe = train(save_consolidated=False)
    newest = latest(tmp_path / "run")
    store = open_directory("memory://starts/run")
    for file in newest.rglob("*"):
        if file.is_file():
            store.write_file(f"{newest.name}/{file.relative_to(newest)}", file.read_bytes())
    with pytest.raises(RunDirectoryError, match=r"s3:/bucket/run is a URL.*checkpoint\.restore_from"):
        train(checkpoint_dir="s3://bucket/run")
    again = train(save_consolidated=False, checkpoint_dir=str(tmp_path / "again"), restore_from="memory://starts/run")
    assert again.step_scheduler.step == recipe.step_scheduler.step == 6
    ours, theirs = again.unwrapped().state_dict(), recipe.unwrapped().state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
