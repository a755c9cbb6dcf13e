"""The console script, through its main function."""

import json
import os
import pickle

import pytest
import torch
from torch import nn

from automodel_ckpt import load, save
from automodel_ckpt.cli import main
from automodel_ckpt.faults import ranks


@pytest.fixture
def root(tmp_path, build, state_of):
    for step in (1, 2, 3):
        save(tmp_path / "run", state_of(build(step)), step=step, metrics={"loss": 1 / step})
    return tmp_path / "run"


def test_ls_verify_gc(root, capsys):
    assert main(["ls", str(root), "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["step-00000002", "step-00000003"]
    assert main(["verify", str(root)]) == 0
    assert "step-00000003: intact" in capsys.readouterr().out
    assert main(["gc", str(root), "--keep-last", "1"]) == 0
    assert capsys.readouterr().out == "deleted step-00000002\n"


def test_damage_gives_exit_code_6_and_one_line(root, capsys):
    shard = root / "step-00000003/model/shard-00000-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert main(["verify", str(root / "step-00000003")]) == 6
    error = capsys.readouterr().err
    assert "differs from what was written" in error
    assert error.count("\n") == 1
    assert main(["verify", str(root / "absent")]) == 6


def test_diff(root, capsys):
    assert main(["diff", str(root / "step-00000002"), str(root / "step-00000002")]) == 0
    assert main(["diff", str(root / "step-00000002"), str(root / "step-00000003")]) == 1
    assert "model mid.weight: differs" in capsys.readouterr().out


def test_consolidate_without_assets_keeps_names_and_bits(root, tmp_path, build):
    from safetensors.torch import load_file

    assert main(["consolidate", str(root), str(tmp_path / "hf")]) == 0
    written = load_file(tmp_path / "hf/model.safetensors")
    expected = build(3).model.state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_import_of_a_torch_distributed_checkpoint(tmp_path, build, capsys):
    import torch.distributed.checkpoint as dcp

    made = build(1)
    dcp.save({"model": made.model.state_dict(), "note": {"x": object}}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    source, target = str(tmp_path / "dcp"), str(tmp_path / "run")
    assert main(["import", source, target, "--step", "7", "--prefix", "model."]) == 0
    assert "note.x" in capsys.readouterr().out
    back = build(2).model
    load(target, {"model": back}, strict=False)
    assert torch.equal(back["mid"].weight, made.model["mid"].weight)


@pytest.fixture
def nemo_run(fast_path):
    """A run in NeMo Automodel's layout: parts of tensors by torch's Hugging Face writer, and pointers."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    def work(rank):
        import torch.distributed.checkpoint as dcp
        from torch.distributed.fsdp import fully_shard

        model = _seeded_net()
        fully_shard(model)
        for name in ("epoch_0_step_20", "epoch_1_step_40"):
            writer = HuggingFaceStorageWriter(path=str(fast_path / name / "model"), save_distributed=True)
            dcp.save(model.state_dict(), storage_writer=writer)
            with torch.no_grad():
                model[0].weight.add_(1)

    ranks.run(3, work)
    (fast_path / "LATEST").symlink_to("epoch_1_step_40")
    (fast_path / "LOWEST_VAL").write_text("epoch_0_step_20")
    return fast_path


def _seeded_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4))


def test_import_of_a_nemo_run_follows_its_pointers(nemo_run, tmp_path, capsys):
    for source, step, added in ((nemo_run, 40, 1), (nemo_run / "LOWEST_VAL", 20, 0), (nemo_run / "LATEST", 40, 1)):
        root = tmp_path / source.name
        assert main(["import", str(source), str(root)]) == 0
        assert f"step-{step:08d}" in capsys.readouterr().out
        back, expected = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4)), _seeded_net()
        load(root, {"model": back})
        assert torch.equal(back[0].weight, expected[0].weight + added)
        assert torch.equal(back[1].weight, expected[1].weight)


def test_import_refuses_a_missing_part_and_a_pointer_out_of_the_run(nemo_run, tmp_path, capsys):
    next((nemo_run / "epoch_1_step_40/model").glob("shard-00002-*")).unlink()
    assert main(["import", str(nemo_run), str(tmp_path / "run")]) == 6
    assert "a file is missing or damaged" in capsys.readouterr().err
    (nemo_run / "LOWEST_VAL").write_text("../elsewhere")
    assert main(["import", str(nemo_run / "LOWEST_VAL"), str(tmp_path / "run")]) == 6
    assert "only relative names below" in capsys.readouterr().err
    (nemo_run / "epoch_0_step_20").rename(nemo_run / "kept")
    assert main(["import", str(nemo_run / "kept"), str(tmp_path / "run")]) == 2
    assert "Give it: --step N" in capsys.readouterr().err


@pytest.fixture
def exported(tmp_path):
    """A directory with weights and the logits that the model in memory gave."""
    transformers = pytest.importorskip("transformers")
    from automodel_ckpt import export_hf
    from automodel_ckpt.hf.probe import PROBE, probe_text

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=300
    )
    model = transformers.LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        text = probe_text(inputs, model(**inputs).logits, tolerance=1e-5)
    return export_hf(model, tmp_path / "out", extra_files={PROBE: text})


def test_verify_of_an_export_compares_the_logits_that_it_kept(exported, capsys):
    from safetensors.torch import load_file, save_file

    assert main(["verify", str(exported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_difference"] < 1e-6
    file = exported / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] += 1  # loads, and is finite
    save_file(tensors, file, metadata={"format": "pt"})
    assert main(["verify", str(exported)]) == 6
    assert "logits differ by" in capsys.readouterr().err
    (exported / "automodel_probe.json").unlink()
    assert main(["verify", str(exported)]) == 0
    assert "no logits were kept to compare" in capsys.readouterr().out
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert main(["verify", str(exported)]) == 6
    assert "missing ['model.norm.weight']" in capsys.readouterr().err
    (exported / "automodel_probe.json").write_text("{}")
    assert main(["verify", str(exported)]) == 6


class _Canary:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_import_runs_no_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/.metadata").write_bytes(pickle.dumps(_Canary()))
    assert main(["import", "evil", "run", "--step", "1"]) == 6
    assert "posix.mkdir" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_merge_equals_peft(tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2})
    model = peft.get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(8)[None]
    expected = model(ids).logits
    assert main(["merge", str(tmp_path / "base"), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-5, atol=1e-5)
