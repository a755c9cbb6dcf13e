"""``ckpt export``: what a run or one of its checkpoints holds loads in plain transformers and peft."""

import json

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from automodel_recipes.cli import main

LORA = {"_target_": "lora", "target_modules": ["*.q_proj"], "dim": 4, "alpha": 8}


def config_of(tiny_config, *, lora):
    tiny_config["step_scheduler"] |= {"max_steps": 3, "ckpt_every_steps": 1}
    tiny_config["checkpoint"] = {"enabled": True, "max_recent_checkpoints": 3}
    tiny_config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 0.01}
    return tiny_config | ({"peft": LORA} if lora else {})


def weights(directory):
    (file,) = directory.glob("*.safetensors")
    return load_file(file)


def test_a_full_run_and_its_checkpoints(cli, tiny_config, tmp_path, capsys):
    run = cli(config_of(tiny_config, lora=False), "run").path
    for place, out in ((f"{run}", "finished"), (f"{run}@2", "second"), (f"{run}@latest", "last")):
        assert main(["ckpt", "export", place, "-o", str(tmp_path / out)]) == 0
    assert "second (model)" in capsys.readouterr().out
    finished, second, last = (weights(tmp_path / name) for name in ("finished", "second", "last"))
    assert all(torch.equal(finished[name], last[name]) for name in finished.keys() | last.keys())
    assert any(not torch.equal(second[name], last[name]) for name in last)
    ids = torch.arange(5, 15)[None]
    ours = AutoModelForCausalLM.from_pretrained(run / "final")(ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "last")(ids).logits, ours)
    assert not torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "second")(ids).logits, ours)
    assert AutoTokenizer.from_pretrained(tmp_path / "second").get_vocab()["<|user|>"] == 3

    assert main(["ckpt", "export", str(run), "-o", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert half.dtype == torch.bfloat16
    assert all(torch.equal(tensor, finished[name].bfloat16()) for name, tensor in weights(tmp_path / "half").items())
    assert main(["ckpt", "export", str(run), "-o", str(tmp_path / "cut"), "--shard-size", "20KB"]) == 0
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1

    assert main(["ckpt", "export", str(run), "-o", str(tmp_path / "cut")]) == 2
    assert "exists already. Choose another -o" in capsys.readouterr().err
    assert main(["ckpt", "export", str(tmp_path / "half"), "-o", str(tmp_path / "whole"), "--dtype", "float32"]) == 0
    assert all(
        torch.equal(tensor, finished[name].bfloat16().float()) for name, tensor in weights(tmp_path / "whole").items()
    )
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps(config | {"architectures": ["Ours"]}))
    assert main(["ckpt", "export", str(tmp_path / "half"), "-o", str(tmp_path / "x"), "--dtype", "float32"]) == 2
    assert "transformers has no class 'Ours'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_of_averages_is_exported_as_its_run_would(cli, tiny_config, tmp_path):
    """With an EMA the run measures and finishes with averages, while it trains other weights."""
    run = cli(config_of(tiny_config, lora=False) | {"ema": {"decay": 0.5}}, "run").path
    assert main(["ckpt", "export", f"{run}@latest", "-o", str(tmp_path / "last")]) == 0
    finished, last = weights(run / "final"), weights(tmp_path / "last")
    assert all(torch.equal(finished[name], last[name]) for name in finished.keys() | last.keys())
    (trained,) = (load_file(path) for path in run.glob("step-00000003/model/*.safetensors"))
    assert any(not torch.equal(trained[name], last[name]) for name in last)


def test_a_lora_run_and_its_checkpoints(cli, tiny_config, tiny_model, tmp_path, capsys):
    from peft import PeftModel

    run = cli(config_of(tiny_config, lora=True), "run").path
    for place, out in ((f"{run}", "finished"), (f"{run}@2", "second"), (f"{run}@latest", "last")):
        assert main(["ckpt", "export", place, "-o", str(tmp_path / out)]) == 0
    assert "last (adapter)" in capsys.readouterr().out
    finished, second, last = (weights(tmp_path / name) for name in ("finished", "second", "last"))
    assert finished.keys() == last.keys() == second.keys()
    assert all(torch.equal(finished[name], last[name]) for name in finished)
    assert any(not torch.equal(second[name], last[name]) for name in last)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    PeftModel.from_pretrained(plain, tmp_path / "second")
    AutoTokenizer.from_pretrained(tmp_path / "second")

    for place in (f"{run}", f"{run}@2"):
        assert main(["ckpt", "export", place, "-o", str(tmp_path / "x"), "--dtype", "float16"]) == 2
        assert "holds an adapter, which keeps its dtype and its one file. Leave dtype out" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
