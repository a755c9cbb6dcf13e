"""Definitions, signatures and annotations are read from source, without importing it."""

import ast
import subprocess
import sys

import pytest

from automodel_recipes.validation.annotations import annotation_schema, describe, fits
from automodel_recipes.validation.signatures import parameter_docs, signature_of
from automodel_recipes.validation.source import base_names, find_definition, is_installed, split_target
from automodel_recipes.validation.target import Opaque, find_target

PACKAGE = {
    "__init__.py": "_HOMES = {'Lazy': 'srcpkg.deep.leaf', 'Near': 'deep'}\n"
    "def __getattr__(name):\n    raise AttributeError(name)\n",
    "deep/__init__.py": "from .leaf import *\nfrom .leaf import Leaf as Renamed\nclass Near:\n    pass\n",
    "deep/leaf.py": "import srcpkg.base as b\n"
    "from srcpkg.base import Base\n"
    "class Lazy(b.Base):\n    def __init__(self, x: int, *, y: 'float | None' = None):\n"
    "        '''Doc.\n\n        Args:\n            x: how many.\n"
    "            y (float): how much,\n                and why.\n        '''\n"
    "class Leaf(Base): pass\n"
    "Alias = Leaf\n",
    "typed.py": "from typing import TypedDict, Unpack\n"
    "class Keys(TypedDict, total=False):\n    seq_length: int\n"
    "def make(path: str, **keys: Unpack[Keys]): pass\n",
    "base.py": "from dataclasses import dataclass, field\n"
    "raise_me = 1 / 0\n"
    "class Base:\n    def __init__(self, a, b=2, **more): pass\n    @classmethod\n    def make(cls, z): pass\n"
    "@dataclass\nclass Data:\n    first: int\n    second: list[str] = field(default_factory=list)\n"
    "@dataclass\nclass More(Data):\n    third: bool = False\n",
}


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, text in PACKAGE.items():
        path = folder / "srcpkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    assert not [name for name in sys.modules if name.startswith("srcpkg")], "source reading imported the package"


@pytest.mark.parametrize(
    ("target", "home"),
    [
        ("srcpkg.Lazy", "srcpkg.deep.leaf.Lazy"),
        ("srcpkg.Near", "srcpkg.deep.Near"),
        ("srcpkg.deep.Renamed", "srcpkg.deep.leaf.Leaf"),
        ("srcpkg.deep.leaf.Alias", "srcpkg.deep.leaf.Leaf"),
        ("srcpkg.deep.Lazy", "srcpkg.deep.leaf.Lazy"),
        ("torch.optim.AdamW", "torch.optim.adamw.AdamW"),
        ("torch.nn.Linear", "torch.nn.modules.linear.Linear"),
    ],
)
def test_definitions_are_followed_through_imports(target, home):
    assert find_target(target).definition.name == home


def test_bases_are_followed():
    found = find_definition("torch.optim", "AdamW")
    assert base_names(found)[:3] == [
        "torch.optim.adamw.AdamW",
        "torch.optim.adam.Adam",
        "torch.optim.optimizer.Optimizer",
    ]
    assert base_names(find_definition("srcpkg", "Lazy")) == ["srcpkg.deep.leaf.Lazy", "srcpkg.base.Base"]


def parameters(module, name, method=None):
    signature = signature_of(find_definition(module, name), method)
    return {p.name: p.required for p in signature.parameters.values()}, signature.open


def test_signatures():
    assert parameters("srcpkg.deep.leaf", "Lazy") == ({"x": True, "y": False}, False)
    assert parameters("srcpkg.deep.leaf", "Leaf") == ({"a": True, "b": False}, True)
    assert parameters("srcpkg.base", "Base", "make") == ({"z": True}, False)
    assert parameters("srcpkg.base", "More") == ({"first": True, "second": False, "third": False}, False)


def test_typed_keywords_close_a_signature():
    assert parameters("srcpkg.typed", "make") == ({"seq_length": False, "path": True}, False)


def test_signatures_agree_with_python():
    import inspect

    import torch

    for name in ("AdamW", "SGD", "Adagrad", "RMSprop"):
        real = inspect.signature(getattr(torch.optim, name)).parameters.values()
        assert parameters("torch.optim", name)[0] == {p.name: p.default is p.empty for p in real}


def test_docs_of_parameters():
    signature = signature_of(find_definition("srcpkg", "Lazy"))
    assert parameter_docs(signature) == {"x": "how many.", "y": "how much, and why."}


@pytest.mark.parametrize(
    "target", ["torch.optim.NoSuch", "automodel_core.NoSuch", "torch.optim", "no_such_package_x.y"]
)
def test_what_is_certainly_absent_is_an_error(target):
    with pytest.raises(ValueError):
        find_target(target)


def test_what_source_does_not_tell_is_left_open():
    with pytest.raises(Opaque):
        find_target("transformers.LlamaForCausalLM.from_pretrained")


def test_split():
    module, rest = split_target("torch.optim.AdamW.step")
    assert (module.name, rest) == ("torch.optim", ["AdamW", "step"])
    assert is_installed("torch")
    assert not is_installed("no_such_package_x")


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1, -1], [1.5, "1", None, True, [1]]),
        ("float", [1, 1.5, -0.0], ["1", None, True]),
        ("bool", [True, False], [1, 0, "true", None]),
        ("str", ["", "x"], [1, None, ["x"]]),
        ("int | None", [1, None], ["x", 1.0]),
        ("Optional[str]", ["x", None], [1]),
        ("Union[int, str]", [1, "x"], [1.5, None]),
        ("Literal['a', 'b', 1]", ["a", "b", 1], ["c", 2, True, None]),
        ("list[int]", [[], [1, 2]], [[1, "x"], 1, "x"]),
        ("Sequence[str] | str", ["x", ["x"]], [1, [1]]),
        ("tuple[float, float]", [[0.9, 0.95], [1, 2]], [[0.9], [1, 2, 3], ["a", "b"]]),
        ("tuple[int, ...]", [[], [1, 2, 3]], [["a"]]),
        ("dict[str, int]", [{}, {"a": 1}], [{"a": "x"}, [1]]),
        ("float | Tensor", [0.1], ["x", None]),
        ("str | torch.dtype", ["float32"], [1, None]),
        ("'int | None'", [1, None], ["x"]),
        ("Any", [1, "x", None, []], []),
        ("Callable[..., int]", ["x", None], []),
        ("SomethingUnknown | None", [1, "x", None], []),
        ("os.PathLike | str", ["x"], [1]),
    ],
)
def test_values_fit_annotations(annotation, good, bad):
    schema = annotation_schema(ast.parse(annotation, mode="eval").body)
    assert [value for value in good if not fits(value, schema)] == []
    assert [value for value in bad if fits(value, schema)] == []


def test_schemas_in_words():
    words = describe(annotation_schema(ast.parse("int | Literal['auto'] | None", mode="eval").body))
    assert words == 'a whole number or one of "auto" or null'
    assert describe({"type": "integer", "minimum": 1}) == "a whole number >= 1"


def test_validation_imports_neither_torch_nor_transformers(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {_target_: torch.nn.Linear}\ndataset: {_target_: mock}\n")
    code = (
        "import sys; from automodel_recipes.cli import main;"
        f"main(['validate', {str(tmp_path / 'c.yaml')!r}]);"
        "sys.exit(sum(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
