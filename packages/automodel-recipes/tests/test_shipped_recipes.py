"""Every shipped YAML validates and builds on the meta device, offline."""

import re
from pathlib import Path

import pytest
import torch

from automodel_core.config import ConfigNode, load_config
from automodel_recipes.model_facts import find_facts
from automodel_recipes.shipped import ROOT
from automodel_recipes.validation import validate
from automodel_recipes.validation.facts import model_facts

SHIPPED = sorted(ROOT.rglob("*.yaml"))


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def config(request, tmp_path, monkeypatch):
    """A shipped configuration in an empty directory, with the files there that its own comments tell to generate."""
    monkeypatch.chdir(tmp_path)
    node = load_config(request.param)
    for section in ("dataset", "validation_dataset"):
        name = node.get(f"{section}.path_or_dataset_id") or node.get(f"{section}.path_or_dataset")
        if isinstance(name, str) and name.startswith("runs/"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text('{"text": "x"}\n')
    return node


def test_there_are_some():
    assert len(SHIPPED) >= 3


def test_it_validates(config):
    problems = [str(problem) for problem in validate(config, deep=True).problems]
    # Optional packages (bitsandbytes, torchao) are the user's to install; the lane `extras` has them.
    assert [text for text in problems if "which is not installed; pip install" not in text] == []


def build_on_meta(config):
    """The model of a configuration without weights."""
    given = config.get("model.config")
    source = (
        config.path("model.config") if isinstance(given, str) else config.path("model.pretrained_model_name_or_path")
    )
    facts = given.to_dict() if isinstance(given, ConfigNode) else find_facts(source)
    assert facts or Path(source).is_dir(), f"{source}: add its dimensions to model_configs/"
    target = config.model.target()
    from_config = getattr(getattr(target, "__self__", target), "from_config", target)
    return from_config(facts or source, materialize=False)


def test_it_builds_on_the_meta_device(config):
    built = build_on_meta(config)
    model = getattr(built, "model", built)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    given = config.get("model.config", "")
    facts = model_facts(config) or (given if isinstance(given, ConfigNode) else find_facts(given)) or {}
    if "vocab_size" in facts:
        assert model.get_input_embeddings().weight.shape[0] == facts["vocab_size"]
    if config.get("freeze_config") is not None:
        from automodel_core.models import apply_freezing

        apply_freezing(model, **config.freeze_config.to_dict())
    if config.get("peft") is not None:
        from automodel_core.peft import apply_lora

        before = sum(parameter.requires_grad for parameter in model.parameters())
        apply_lora(model, config.peft.instantiate())
        assert 0 < sum(parameter.requires_grad for parameter in model.parameters()) != before
    if config.get("loss_fn") is not None:
        assert callable(config.loss_fn.instantiate())
    from automodel_recipes.build.optim import build_recipe_optimizer

    optimizer = build_recipe_optimizer(config, model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == trained


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_example_of_the_repository_is_what_the_wheel_ships(path):
    examples = Path(__file__).parents[3] / "examples"
    assert (examples / path.relative_to(ROOT)).read_text() == path.read_text()


def test_the_table_of_examples_lists_every_one_and_no_other():
    text = (Path(__file__).parents[3] / "examples/README.md").read_text()
    listed = {name for line in text.splitlines() if line.startswith("| ") for name in re.findall(r"`(\w+)`", line)}
    assert listed == {path.stem for path in SHIPPED}
