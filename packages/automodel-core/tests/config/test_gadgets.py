"""A configuration cannot call what it should not: 26 classes of 20 targets each, in three roles, are all refused."""

import json
from pathlib import Path

import pytest

from automodel_core.config import ConfigError, Policy, config_from_dict, resolve_target
from automodel_core.config.kinds import KINDS, kind_of_role

GADGETS = json.loads((Path(__file__).parent / "gadgets.json").read_text(encoding="utf-8"))


def test_the_suite_is_as_large_as_it_says():
    assert len(GADGETS) == 26
    assert all(len(set(targets)) == 20 for targets in GADGETS.values())


def accepted(target, kind):
    try:
        resolve_target(target, Policy(), kind)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", GADGETS)
def test_refused_in_every_role(name):
    # What is harmless but of the wrong kind (a layer, a tokenizer) is only refused where another kind is needed.
    kinds = [KINDS["optimizer"]] if name.startswith("the wrong kind") else [KINDS["optimizer"], KINDS["dataset"], None]
    assert [(target, kind) for target in GADGETS[name] for kind in kinds if accepted(target, kind)] == []


@pytest.mark.parametrize("path", ["optimizer", "model", "dataset", "loss_fn", "collate_fn", "peft", "nested.thing"])
def test_a_refused_target_is_neither_imported_nor_called(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w').close()\ndef run(**k): pass\n")
    section = {"_target_": "evil_module.run"}
    for key in reversed(path.split(".")):
        section = {key: section}
    with pytest.raises(ConfigError, match="allow it with --allow-target evil_module"):
        config_from_dict(section).get(path).instantiate()
    assert not (tmp_path / "touched").exists()


def test_a_gadget_below_a_permitted_target_is_refused():
    section = {"_target_": "torch.optim.SGD", "lr": {"_target_": "builtins.eval", "source": "1"}}
    with pytest.raises(ConfigError, match=r"optimizer.lr._target_: 'builtins.eval' is neither a registered component"):
        config_from_dict({"optimizer": section}).optimizer.instantiate(params=[])


def test_a_function_reference_is_checked_as_well():
    section = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "init_fn": "os.system"}
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"model": section}).model.instantiate()
    assert "init_fn" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("optimizer", "torch.optim.AdamW"),
        ("optimizer", "torch.optim.SGD"),
        ("lr_scheduler", "torch.optim.lr_scheduler.StepLR"),
        ("model", "transformers.AutoModelForCausalLM.from_pretrained"),
        ("model", "transformers.LlamaForCausalLM.from_pretrained"),
        ("model", "torch.nn.Linear"),
        ("tokenizer", "transformers.AutoTokenizer.from_pretrained"),
        ("processor", "transformers.AutoProcessor.from_pretrained"),
        ("model.config", "transformers.LlamaConfig"),
        ("model.quantization_config", "transformers.BitsAndBytesConfig"),
        ("distributed.mp_policy", "torch.distributed.fsdp.MixedPrecisionPolicy"),
        ("peft", "peft.LoraConfig"),
    ],
)
def test_ordinary_targets_are_accepted(path, target):
    assert callable(resolve_target(target, Policy(), kind_of_role(path)))


def test_allow_target_opens_one_prefix_at_a_whole_name():
    policy = Policy(allow_targets=("collections.abc",))
    assert policy.allows("collections.abc.Mapping")
    assert not policy.allows("collections.abcd.x")
    assert not policy.allows("collections.OrderedDict")
    resolve_target("collections.OrderedDict", Policy(allow_targets=("collections",)))


def test_a_file_target_runs_only_when_allowed(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def make(x):\n    return x + 1\n")
    target = f"{file}:make"
    with pytest.raises(ValueError, match="is a file of code; allow it with --allow-target"):
        resolve_target(target)
    config = config_from_dict({"_target_": target, "x": 1}, allow_targets=[str(file)])
    assert config.instantiate() == 2
