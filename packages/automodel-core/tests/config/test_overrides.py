"""``a.b=c``, ``--a.b=c``, ``--a.b c``, ``~a.b``."""

import pytest

from automodel_core.config import ConfigError, load_config

TEXT = "optimizer:\n  lr: 0.1\n  betas: [0.9, 0.99]\n  groups:\n    - {name: a}\npeft:\nname: x\n"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(TEXT)
    return file


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["optimizer.lr=1e-4"], "optimizer.lr", 1e-4),
        (["--optimizer.lr=2"], "optimizer.lr", 2),
        (["--optimizer.lr", "3"], "optimizer.lr", 3),
        (["--optimizer.lr", "-3"], "optimizer.lr", -3),
        (["name=a=b=c"], "name", "a=b=c"),
        (["name=C: # [x"], "name", "C: # [x"),
        (["name="], "name", None),
        (["name='7'"], "name", "7"),
        (["optimizer.betas=[0.8, .95]"], "optimizer.betas", [0.8, 0.95]),
        (["optimizer.betas.1=0.5"], "optimizer.betas", [0.9, 0.5]),
        (["optimizer.groups.0.name=b"], "optimizer.groups.0.name", "b"),
        (["new.section.key=1"], "new.section.key", 1),
        (["peft.dim=8"], "peft.dim", 8),
        (["optimizer={lr: 5}"], "optimizer.lr", 5),
        (["name=one", "name=two"], "name", "two"),
    ],
)
def test_override(path, words, place, value):
    assert load_config(path, words).get(place) == value


def test_deletion(path):
    config = load_config(path, ["~optimizer.lr", "~optimizer.betas.0"])
    assert "lr" not in config.optimizer
    assert config.optimizer.betas == [0.99]


def test_an_override_is_its_own_source(path):
    config = load_config(path, ["optimizer.betas=[1, 2]"])
    assert str(config.source("optimizer.betas.1")) == "override optimizer.betas=[1, 2]"
    assert config.source("optimizer.betas").origin == "override"
    assert config.source("optimizer.lr").origin == "file"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name.deep=1", "override name.deep=1 name.deep: name is a single value, it has no key 'deep'"),
        (
            "optimizer.betas.5=1",
            "override optimizer.betas.5=1 optimizer.betas.5: no item '5' in a list of 2; items count from 0",
        ),
        ("~optimizer.lrr", "override ~optimizer.lrr optimizer.lrr: no key 'lrr' here; did you mean \"lr\"?"),
        ("justaword", "override justaword: not an override; write a.b=value, --a.b value, or ~a.b to remove a key"),
        (
            "--optimizer.lr",
            "override --optimizer.lr: not an override; write a.b=value, --a.b value, or ~a.b to remove a key",
        ),
        ("a b=1", "override a b=1: not an override; write a.b=value, --a.b value, or ~a.b to remove a key"),
        ("a..b=1", "override a..b=1: not an override; write a.b=value, --a.b value, or ~a.b to remove a key"),
        ("optimizer.betas=[1", "override optimizer.betas=[1 optimizer.betas: not valid YAML"),
    ],
)
def test_refused(path, word, message):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [word])
    assert str(caught.value).startswith(message)


def test_all_bad_overrides_are_listed(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["~nope", "name.x=1", "optimizer.betas.9=1"])
    assert len(caught.value.problems) == 3


def test_a_secret_override_is_not_repeated(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["name.api_key=canary-123"])
    assert "canary-123" not in str(caught.value)
    config = load_config(path, ["wandb.api_key=canary-123"])
    assert "canary-123" not in str(config.source("wandb.api_key"))
    assert config.get("wandb.api_key").reveal() == "canary-123"
