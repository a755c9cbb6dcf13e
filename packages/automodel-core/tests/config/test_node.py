"""Reading a configuration."""

import pickle

import pytest

from automodel_core.config import ConfigError, ConfigNode, config_from_dict, load_config
from automodel_core.config.packages import resolve_package_path


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a:\n  b: 1\n  items: [x, {y: 2}]\nempty:\ndata: pkg://yaml/loader.py\n")
    return load_config(path)


def test_reading(config):
    assert config.a.b == config["a"]["b"] == config.get("a.b") == 1
    assert config.get("a.c", 7) == 7
    assert config.get("empty", 7) is None
    assert config.a["items"][1].y == 2
    assert "a.b" in config
    assert "a.c" not in config
    assert list(config) == ["a", "empty", "data"]
    assert dict(config.a) == {"b": 1, "items": ["x", config.get("a.items.1")]}


def test_a_misspelt_attribute_names_the_near_one(config):
    with pytest.raises(AttributeError, match=r"c\.yaml:2:3 a: no key 'itens'; did you mean \"items\"\?"):
        _ = config.a.itens
    assert not hasattr(config, "nope")


def test_pickle_round_trip(config):
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


def test_error_names_the_place(config):
    error = config.a.error("b", "is too small; make it larger")
    assert isinstance(error, ConfigError)
    assert str(error).endswith("c.yaml:2:6 a.b: is too small; make it larger")
    assert error.exit_code == 2


def test_package_data_is_found_without_import(config):
    assert config.path("data").endswith("/yaml/loader.py")
    assert config.to_dict()["data"] == config.path("data")
    assert config.path("nope") is None
    assert config.path("nope", "x") == "x"


@pytest.mark.parametrize(
    "value",
    [
        "pkg://yaml/../os.py",
        "pkg://yaml/..",
        "pkg://yaml//etc/passwd",
        "pkg://yaml",
        "pkg://a.b/c",
        "pkg://yaml/./x",
        "pkg://yaml/nope.py",
        "pkg://no_such_package_here/x",
        "pkg://yaml/a\\..\\b",
        "pkg:///etc/passwd",
    ],
)
def test_package_paths_that_are_refused(value):
    with pytest.raises(ValueError, match="pkg:"):
        resolve_package_path(value)


def test_a_missing_package_file_is_reported_where_it_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a:\n  data: pkg://yaml/nope.txt\n")
    for read in (lambda c: c.path("a.data"), lambda c: c.to_dict()):
        with pytest.raises(ConfigError) as caught:
            read(load_config(path))
        assert str(caught.value).startswith(f"{path}:2:9 a.data: 'pkg://yaml/nope.txt': yaml holds no 'nope.txt'")


def test_from_a_dict():
    config = config_from_dict({"a": {"b": [1, {"c": 2}]}})
    assert isinstance(config.a, ConfigNode)
    assert config.get("a.b.1.c") == 2
    assert config.source("a.b").origin == "python"


def test_a_section_without_some_keys_keeps_its_place_and_the_others():
    node = config_from_dict({"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "ours": 1}}).optimizer
    less = node.without("ours", "absent")
    assert less.to_dict() == {"_target_": "torch.optim.SGD", "lr": 0.1}
    assert node.get("ours") == 1
    assert str(less.error("lr", "x")).endswith("optimizer.lr: x")
