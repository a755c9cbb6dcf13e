"""``_target_``: what is called, with what, and what is said when it does not fit."""

import functools
import sys

import pytest
import torch

from automodel_core.config import ConfigError, load_config
from automodel_core.config.targets import components


@pytest.fixture
def load(tmp_path):
    def _load(text, **options):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return load_config(path, **options)

    return _load


@pytest.fixture
def lib(tmp_path, monkeypatch):
    """A package of the user's own, to be allowed by prefix."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mylib.py").write_text(
        "class Box:\n    def __init__(self, inner=None, *, size: int):\n        self.inner, self.size = inner, size\n"
        "def double(x, by=2):\n    return x * by\n"
        "def anything(**keys):\n    return keys\n"
        "def broken():\n    raise KeyError('inside')\n"
    )
    (tmp_path / "halfway.py").write_text("import a_module_that_is_not_there\n")
    yield
    sys.modules.pop("mylib", None)
    sys.modules.pop("halfway", None)


def message(function):
    with pytest.raises(ConfigError) as caught:
        function()
    return [f"{p.line}:{p.column} {p.path}: {p.message}" for p in caught.value.problems]


def test_nested_targets_are_built_first(load, lib):
    config = load(
        "box:\n  _target_: mylib.Box\n  size: 1\n  inner:\n    - {_target_: mylib.Box, size: 2, inner: {a: [1]}}\n",
        allow_targets=["mylib"],
    )
    box = config.box.instantiate()
    assert (box.size, box.inner[0].size, box.inner[0].inner) == (1, 2, {"a": [1]})


def test_runtime_keywords_are_passed_on(load):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = load("optimizer: {_target_: torch.optim.SGD, lr: 0.5}\n").optimizer.instantiate(params=[weight])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["params"] == [weight]


def test_nested_targets_take_what_is_offered_and_not_given(load, lib):
    inner = "{one: {_target_: mylib.Box}, two: [{_target_: mylib.Box, size: 2}]}"
    text = f"a:\n  _target_: mylib.Box\n  size: 1\n  inner: {inner}\n"
    box = load(text, allow_targets=["mylib"]).a.instantiate({"size": 9, "color": "red"})
    assert (box.size, box.inner["one"].size, box.inner["two"][0].size) == (1, 9, 2)


def test_a_key_given_twice_is_an_error(load):
    node = load("optimizer:\n  _target_: torch.optim.SGD\n  params: 3\n").optimizer
    assert message(lambda: node.instantiate(params=[])) == [
        "3:3 optimizer.params: is given by the recipe at run time; remove it here"
    ]


def test_unknown_and_missing_keys_are_listed_together(load, lib):
    node = load("box:\n  _target_: mylib.Box\n  siz: 1\n  innr: 2\n", allow_targets=["mylib"]).box
    assert message(node.instantiate) == [
        '3:3 box.siz: unknown key for mylib.Box; did you mean "size"?',
        '4:3 box.innr: unknown key for mylib.Box; did you mean "inner"?',
        "2:3 box: mylib.Box needs 'size'; add `size:` to this section",
    ]


def test_a_runtime_keyword_that_the_target_does_not_take(load, lib):
    node = load("box: {_target_: mylib.double, x: 1}\n", allow_targets=["mylib"]).box
    assert message(lambda: node.instantiate(mesh=0)) == [
        "1:6 box: mylib.double does not take mesh, which the recipe passes; name another target"
    ]


def test_open_targets_take_any_key(load, lib):
    node = load("box: {_target_: mylib.anything, a: 1, b: {c: 2}}\n", allow_targets=["mylib"]).box
    assert node.instantiate(d=3) == {"a": 1, "b": {"c": 2}, "d": 3}


def test_a_function_in_an_fn_section_is_bound_not_called(load, lib):
    node = load("collate_fn: {_target_: mylib.double, by: 5}\n", allow_targets=["mylib"]).collate_fn
    bound = node.instantiate()
    assert isinstance(bound, functools.partial)
    assert bound(2) == 10


def test_a_class_in_an_fn_section_is_instantiated(load, lib):
    assert load("loss_fn: {_target_: mylib.Box, size: 4}\n", allow_targets=["mylib"]).loss_fn.instantiate().size == 4


def test_a_name_in_an_fn_key_is_the_function(load, lib):
    node = load("box: {_target_: mylib.anything, map_fn: mylib.double}\n", allow_targets=["mylib"]).box
    assert node.instantiate()["map_fn"](3) == 6


def test_package_paths_are_resolved(load, lib):
    node = load("box: {_target_: mylib.anything, file: pkg://yaml/loader.py}\n", allow_targets=["mylib"]).box
    assert node.instantiate()["file"].endswith("/yaml/loader.py")


def test_an_import_that_fails_shows_its_cause(load, lib):
    node = load("a:\n  _target_: halfway.thing\n", allow_targets=["halfway"]).a
    assert message(node.instantiate) == [
        "2:13 a._target_: 'halfway.thing' does not import: "
        "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    ]


def test_an_error_inside_a_target_keeps_its_type_and_says_where(load, lib):
    node = load("a: {_target_: mylib.broken}\n", allow_targets=["mylib"]).a
    with pytest.raises(KeyError) as caught:
        node.instantiate()
    assert caught.value.__notes__[0].endswith("c.yaml:1:4 a: while building mylib.broken")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("torch.optim.AdmW", "torch.optim has no 'AdmW'; did you mean \"AdamW\"?"),
        ("torch.optim", "'torch.optim' is a module; name a class or function in it"),
        ("transformer.AutoModel", 'in a known library (did you mean "transformers"?); if you trust it, allow it with'),
        ("3", "must be a name such as torch.optim.AdamW"),
        ("os.system", "'os.system' is neither a registered component nor in a known library; if you trust it, allow"),
    ],
)
def test_targets_that_do_not_exist(load, target, text):
    node = load(f"optimizer:\n  _target_: {target}\n").optimizer
    (found,) = message(lambda: node.instantiate(params=[]))
    assert found.startswith("2:13 optimizer._target_: ")
    assert text in found


def test_a_misspelt_short_name_suggests_a_registered_one(load):
    if "default_collater" not in components():
        pytest.skip("automodel-data is not installed here, so there is no short name to misspell")
    (found,) = message(load("a: {_target_: default_colater}\n").a.instantiate)
    assert found == "1:15 a._target_: no component is called 'default_colater'; did you mean \"default_collater\"?"


def test_a_section_without_target(load):
    assert message(load("a: {b: 1}\n").a.instantiate) == [
        "1:4 a: has no _target_; name the class or function that makes it"
    ]


def test_config_imports_neither_torch_nor_transformers():
    import subprocess

    code = (
        "import sys, automodel_core.config as c; c.config_from_dict({'a': 1});"
        "sys.exit(sum(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
