"""The configuration that a run writes beside its checkpoints gives the same run again."""

import yaml


def test_a_saved_configuration_gives_the_same_run(cli, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("LR_FOR_TEST", "0.2")
    tiny_config["optimizer"]["lr"] = "${LR_FOR_TEST,0.1}"
    tiny_config["peft"] = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "dropout": 0.1}
    tiny_config["checkpoint"] = {"enabled": True}
    first = cli(tiny_config, "first", "seed=9", "--step_scheduler.max_steps", "3", "~clip_grad_norm")
    saved = yaml.safe_load((first.path / "config.yaml").read_text())
    assert saved["seed"] == 9
    assert saved["step_scheduler"]["max_steps"] == 3
    assert saved["optimizer"]["lr"] == "${LR_FOR_TEST,0.1}"
    assert "clip_grad_norm" not in saved
    again = cli(saved, "again")
    assert again.train("loss") == first.train("loss")
    assert len(first.train("loss")) == 3
    weights = "final/adapter_model.safetensors"
    assert (again.path / weights).read_bytes() == (first.path / weights).read_bytes()
    assert (again.path / "config.yaml").read_text() == (first.path / "config.yaml").read_text().replace(
        str(first.path), str(again.path)
    )
