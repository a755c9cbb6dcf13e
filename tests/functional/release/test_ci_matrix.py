"""The lanes of a change are those of the packages it touches and of what is built on them."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("ci_matrix", ROOT / "scripts/ci_matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVERYTHING = {"core", "parallel", "kernels", "data", "ckpt", "recipes"}


@pytest.mark.parametrize(
    "paths, packages",
    [
        (["packages/automodel-data/src/automodel_data/packing.py"], {"data", "recipes"}),
        (["packages/automodel-recipes/src/automodel_recipes/run.py"], {"recipes"}),
        (["pyproject.toml"], EVERYTHING),
        (["tests/conftest.py", "packages/automodel-ckpt/README.md"], EVERYTHING),
        (["docs/contracts.md", "README.md"], set()),
        (["examples/llm/demo_lora.yaml"], {"recipes"}),
        (["hatch.toml"], EVERYTHING),
        ([".ci/run"], EVERYTHING),
    ],
)
def test_affected_packages(matrix, paths, packages):
    assert matrix.affected_packages(paths) == packages


def test_a_leaf_is_tested_alone_and_through_recipes(matrix):
    names = [row["name"] for row in matrix.lanes({"data", "recipes"})]
    assert {
        "unit-data",
        "wheel-data",
        "floor-data",
        "unit-recipes",
        "wheel-recipes",
        "contracts",
        "invariants",
        "skew",
    } <= set(names)
    assert not any(name.endswith(("-core", "-ckpt")) for name in names)
    assert "kernels-aot" not in names


def test_every_lane_names_a_hatch_script_or_a_file_that_exists(matrix):
    scripts = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]["default"]["scripts"]
    for row in matrix.lanes(EVERYTHING):
        word = row["command"].removeprefix("hatch run ").split()[0]
        assert word in scripts or word in ("python", "extras:tests"), row
        for path in re.findall(r"(?:scripts|packages)/[\w./-]+", row["command"]):
            assert (ROOT / path).exists(), row


def workflow(name):
    # YAML 1.1 reads the key `on` as true.
    values = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
    return values, values.get("on", values.get(True))


def test_the_workflow_takes_its_lanes_from_the_script():
    values, _ = workflow("ci.yml")
    plan = values["jobs"]["plan"]["steps"]
    assert any("scripts/ci_matrix.py" in step.get("run", "") for step in plan)
    assert "fromJSON" in values["jobs"]["lane"]["strategy"]["matrix"]


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflows_hold_no_more_rights_than_they_need(name):
    values, _ = workflow(name)
    assert values["permissions"] == {"contents": "read"}
    for job in values["jobs"].values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.search(r"@v?\d|@release/v\d", step["uses"]), f"{step['uses']} is not pinned"
    assert "secrets." not in (ROOT / ".github/workflows" / name).read_text()


def test_a_tag_publishes_one_package_without_a_stored_token():
    values, on = workflow("release.yml")
    assert on["push"]["tags"] == ["automodel-*-v*"]
    publish = values["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]
