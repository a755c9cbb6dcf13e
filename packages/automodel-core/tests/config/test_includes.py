"""A configuration over the files that it includes: values, places, and what goes wrong."""

from importlib.util import find_spec

import pytest

from automodel_core.config import ConfigError, load_config


@pytest.fixture
def write(tmp_path):
    def _write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return _write


BASE = "seed: 1\noptimizer: {_target_: torch.optim.AdamW, lr: 0.1, betas: [0.9, 0.95]}\ntokens: [1, 2]\n"


def problem(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value).replace(str(path.parent), "")


def test_tables_merge_and_everything_else_is_replaced(write):
    write("base.yaml", BASE)
    node = load_config(write("c.yaml", "includes: base.yaml\noptimizer: {lr: 0.2}\ntokens: [3]\nmodel: {a: 1}\n"))
    assert node.to_dict() == {
        "seed": 1,
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.2, "betas": [0.9, 0.95]},
        "tokens": [3],
        "model": {"a": 1},
    }


def test_another_target_takes_nothing_over(write):
    write("base.yaml", BASE)
    node = load_config(write("c.yaml", "includes: base.yaml\noptimizer: {_target_: torch.optim.SGD, lr: 0.2}\n"))
    assert node.optimizer.to_dict() == {"_target_": "torch.optim.SGD", "lr": 0.2}


def test_a_later_file_goes_over_an_earlier_one_and_an_override_over_all(write):
    write("one.yaml", "a: 1\nb: 1\nc: 1\nd: 1\n")
    write("two.yaml", "b: 2\nc: 2\nd: 2\n")
    node = load_config(write("c.yaml", "includes: [one.yaml, two.yaml]\nc: 3\nd: 3\n"), ["d=4"])
    assert node.to_dict() == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_every_value_keeps_its_own_file_and_line(write):
    base = write("deep/base.yaml", BASE)
    write("deep/middle.yaml", "includes: base.yaml\n")
    path = write("c.yaml", "includes: deep/middle.yaml\n\noptimizer: {lr: 0.2}\n")
    node = load_config(path)
    column = BASE.splitlines()[1].index("[") + 1
    assert str(node.source("optimizer.betas")) == f"{base}:2:{column}"
    assert str(node.source("optimizer.lr")) == f"{path}:3:17"
    assert node.source("seed").line == 1


def test_the_saved_form_stands_alone(write):
    write("base.yaml", BASE)
    node = load_config(write("c.yaml", "includes: base.yaml\nseed: 2\n"))
    assert "includes" not in node.to_yaml()
    assert load_config(write("saved.yaml", node.to_yaml())).to_dict() == node.to_dict()


@pytest.mark.skipif(find_spec("automodel_recipes") is None, reason="the file lies in automodel-recipes")
def test_shipped_files_can_be_included(write):
    node = load_config(write("c.yaml", "includes: pkg://automodel_recipes/configs/llm/demo_lora.yaml\nseed: 3\n"))
    assert node.seed == 3
    assert node.peft.dim == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("includes: gone.yaml\n", "/c.yaml:1:11 includes: 'gone.yaml': no such file; a relative path starts at the"),
        ("includes: {a: 1}\n", "/c.yaml:1:11 includes: must be the path of a YAML file, or a list of paths"),
        ("includes: [1]\n", "/c.yaml:1:11 includes: must be the path of a YAML file, or a list of paths"),
        ("includes: c.yaml\n", "/c.yaml:1:11 includes: 'c.yaml' includes itself; remove it here"),
        ("includes: loop.yaml\n", "/loop.yaml:1:11 includes: 'c.yaml' includes itself; remove it here"),
        (
            "includes: pkg://yaml/gone.yaml\n",
            "/c.yaml:1:11 includes: 'pkg://yaml/gone.yaml': yaml holds no 'gone.yaml'",
        ),
        ("includes: bad.yaml\n", "/bad.yaml:1:4: not valid YAML"),
    ],
)
def test_what_goes_wrong(write, text, message):
    write("loop.yaml", "includes: c.yaml\n")
    write("bad.yaml", "a: ]\n")
    assert message in problem(write("c.yaml", text))


def test_problems_of_included_files_are_told_with_their_place(write):
    write("base.yaml", "a: 1\na: 2\n")
    assert "/base.yaml:2:1 a: duplicate key" in problem(write("c.yaml", "includes: base.yaml\nb: 1\nb: 2\n"))
    assert "/c.yaml:3:1 b: duplicate key" in problem(write("c.yaml", "includes: base.yaml\nb: 1\nb: 2\n"))
