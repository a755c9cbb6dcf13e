"""``recipes ls|cp|show``, ``config show|explain|schema``, ``doctor``."""

import functools
import json

import jsonschema
import pytest

from automodel_core.config import load_config
from automodel_recipes.cli import main
from automodel_recipes.schema import RECIPES
from automodel_recipes.shipped import ROOT, shipped_recipes
from automodel_recipes.validation.json_schema import recipe_schema
from automodel_recipes.validation.keys import to_plain

schema_of = functools.cache(recipe_schema)
SHIPPED = sorted(ROOT.rglob("*.yaml"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {_target_: torch.nn.Linear, in_features: 2, out_features: 3}\n"
        "dataset: {_target_: mock}\n"
        "optimizer:\n  _target_: torch.optim.SGD\n  lr: ${LR_FOR_TEST,0.5}\n"
    )
    return path


def out(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_names_are_unique():
    assert len(shipped_recipes()) == len(SHIPPED)


def test_every_shipped_recipe_is_told_in_one_whole_sentence():
    wrong = [r.name for r in shipped_recipes().values() if not r.summary.endswith(".") or ". " in r.summary]
    assert wrong == []
    assert shipped_recipes()["demo_careful"].summary.endswith("the model is to be served with.")  # of its second line


def test_ls_cp_show(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = next(iter(shipped_recipes().values()))
    assert recipe.name in out(capsys, "recipes", "ls")
    assert recipe.name in {row["name"] for row in json.loads(out(capsys, "recipes", "ls", "--json"))}
    assert out(capsys, "recipes", "show", recipe.name) == recipe.path.read_text()
    assert f"next     automodel-recipes train {recipe.name}.yaml" in out(capsys, "recipes", "cp", recipe.name)
    assert (tmp_path / f"{recipe.name}.yaml").read_text() == recipe.path.read_text()
    assert main(["recipes", "cp", recipe.name]) == 2
    assert "exists already" in capsys.readouterr().err


def test_show_resolves_variables_and_overrides(capsys, config, monkeypatch):
    monkeypatch.setenv("LR_FOR_TEST", "0.25")
    text = out(capsys, "config", "show", config, "optimizer.momentum=0.9")
    assert "lr: 0.25\n" in text
    assert "momentum: 0.9\n" in text
    assert json.loads(out(capsys, "config", "show", config, "--json"))["optimizer"]["lr"] == 0.25


def test_provenance_tells_file_line_override_and_default(capsys, config):
    lines = out(capsys, "config", "show", config, "optimizer.momentum=0.9", "--provenance").splitlines()
    found = dict(line.split("  ", 1) for line in lines)
    assert found["optimizer.lr = 0.5"].strip() == f"{config}:5:7"
    assert found["optimizer.momentum = 0.9"].strip() == "override optimizer.momentum=0.9"
    assert found["optimizer.nesterov = False"].strip() == "default of torch.optim.SGD"
    rows = json.loads(out(capsys, "config", "show", config, "--provenance", "--json"))
    assert rows["optimizer.dampening"] == {"value": 0, "origin": "default", "source": "default of torch.optim.SGD"}


def test_explain(capsys, config):
    assert out(capsys, "config", "explain", "evaluation.num_rows").splitlines() == [
        "evaluation.num_rows: How many validation rows to answer; all by default.",
        "  allowed  a whole number >= 1",
    ]
    text = out(capsys, "config", "explain", "optimizer.lr", "--config", config)
    assert f"  value    0.5  ({config}:5:7)" in text
    assert "  default  0.001" in text


def test_fields_of_settings_are_explained(capsys):
    assert out(capsys, "config", "explain", "compile.backend").splitlines() == [
        "compile.backend: Name of the compiler backend.",
        "  allowed  text",
        "  default  inductor",
    ]
    text = out(capsys, "config", "explain", "fp8.filter_fqns")
    assert "fp8.filter_fqns: Parts of module names that stay in high precision." in text
    assert "  default  ['lm_head']" in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_section_can_be_explained(recipe, capsys):
    for name in RECIPES[recipe]:
        assert out(capsys, "config", "explain", name, "--recipe", recipe).startswith(f"{name}: ")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_schema_is_a_schema(recipe):
    jsonschema.Draft202012Validator.check_schema(schema_of(recipe))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_yaml_fits_the_schema(path):
    node = load_config(path)
    values = to_plain(node.tree)
    jsonschema.validate(values, schema_of(node.get("recipe", "LLMFinetuneRecipe")), jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("seed", "x"),
        ("includes", 1),
        ("unknown", 1),
        ("clip_grad_norm", {"max_nrom": 1}),
        ("loss_fn", {"chunk": 1}),
        ("dataloader", {"num_workers": -1}),
        ("dataset", {"_target_": "chat", "path_or_dataset_id": "x", "colour": 1}),
    ],
)
def test_the_schema_refuses_mistakes(section, value):
    good = {"model": {"_target_": "x.y"}, "dataset": {"_target_": "x.y"}}
    schema = schema_of("LLMFinetuneRecipe")
    jsonschema.validate(good, schema, jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good | {section: value}, schema, jsonschema.Draft202012Validator)


def test_doctor(capsys):
    facts = json.loads(out(capsys, "doctor", "--json"))
    assert facts["version"]["torch"].startswith("2.")
    assert "cores" in facts["device"]["cpu"]
    assert facts["kernel"]
    assert "GiB free" in facts["disk"]["here"]
    assert "network" not in facts


def test_doctor_makes_no_connection_offline(capsys, monkeypatch):
    import socket

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("connected"))
    assert "not tried: HF_HUB_OFFLINE is set" in out(capsys, "doctor", "--network")
