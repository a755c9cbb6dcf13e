"""``${NAME}``, defaults, and values that must never be shown."""

import copy
import json
import pickle

import pytest
import yaml

from automodel_core.config import ConfigError, Secret, load_config
from automodel_core.config.secret import is_secret_key, is_secret_variable

CANARY = "canary-5f2a"


def load(tmp_path, text, **environment):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, environment=environment)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${LR}", 1e-4),
        ("'${LR}'", "1e-4"),
        ("${NOPE,3}", 3),
        ("${NOPE,}", None),
        ("${HOME}/x-${LR}", "/root/x-1e-4"),
        ("$${HOME}", "${HOME}"),
        ("$HOME", "$HOME"),
        ("${NOPE,a,b}", "a,b"),
    ],
)
def test_substitution(tmp_path, text, value):
    assert load(tmp_path, f"a: {text}\n", LR="1e-4", HOME="/root").a == value


def test_all_unset_variables_are_listed_with_their_places(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "a: ${ONE}\nb:\n  c: x/${TWO}\n")
    path = tmp_path / "c.yaml"
    assert str(caught.value).splitlines() == [
        f"{path}:1:4 a: environment variable ONE is not set; set it, or give a default: ${{ONE,default}}",
        f"{path}:2:6 b.c: environment variable TWO is not set; set it, or give a default: ${{TWO,default}}".replace(
            ":2:6", ":3:6"
        ),
    ]


def test_malformed_reference(tmp_path):
    with pytest.raises(ConfigError, match="malformed reference"):
        load(tmp_path, "a: '${1X}'\n")


def test_reference_in_a_flow_list_is_explained(tmp_path):
    with pytest.raises(ConfigError, match=r"a \$\{NAME\} inside \[ \] or \{ \} must be quoted"):
        load(tmp_path, "a: [1, ${X,2}]\n")


def test_saved_form_keeps_references(tmp_path):
    config = load(tmp_path, "a: ${LR}\nkey: ${MY_TOKEN}\nb: pkg://yaml/loader.py\n", LR="1", MY_TOKEN=CANARY)
    assert config.to_dict(raw=True) == {"a": "${LR}", "key": "${MY_TOKEN}", "b": "pkg://yaml/loader.py"}


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "MY_SECRET", "DB_PASSWORD", "AWS_CREDENTIAL_FILE", "OPENAI_KEY", "token"]
)
def test_secret_variables(name):
    assert is_secret_variable(name)


@pytest.mark.parametrize("name", ["HOME", "LR", "TOKENIZERS_PARALLELISM", "DATA_DIR", "WORLD_SIZE"])
def test_ordinary_variables(name):
    assert not is_secret_variable(name)


@pytest.mark.parametrize("name", ["token", "hf_token", "api_key", "wandb_api_key", "password", "db_password", "secret"])
def test_secret_keys(name):
    assert is_secret_key(name)


@pytest.mark.parametrize(
    "name",
    ["tokenizer", "pad_token", "num_label_tokens", "max_new_tokens", "start_of_turn_token", "keys", "image_token"],
)
def test_ordinary_keys(name):
    assert not is_secret_key(name)


def forms(secret, config):
    yield repr(secret)
    yield str(secret)
    yield f"{secret} {secret!r} {secret:>8}"
    yield "%s" % secret  # noqa: UP031 - old formatting must not leak either
    yield "x" + secret
    yield "".join([secret])
    yield json.dumps({"a": secret})
    yield yaml.dump({"a": secret})
    yield pickle.dumps(secret).decode("latin1")
    yield pickle.dumps(config).decode("latin1")
    yield repr(config)
    yield json.dumps(config.to_dict())
    yield json.dumps(config.to_dict(raw=True))
    yield repr(config.tree)


def test_a_secret_is_masked_in_every_form(tmp_path):
    config = load(tmp_path, f"a: x-${{HF_TOKEN}}\nwandb:\n  api_key: {CANARY}\n", HF_TOKEN=CANARY)
    for secret in (config.a, config.wandb.api_key):
        assert isinstance(secret, Secret)
        assert secret.reveal().endswith(CANARY)
        assert copy.deepcopy(secret).reveal().endswith(CANARY)
        for form in forms(secret, config):
            assert CANARY not in form
            assert "***" in form or "HF_TOKEN" in form or "api_key" in form


def test_a_target_is_handed_the_value(tmp_path):
    config = load(
        tmp_path,
        "_target_: datetime.timezone\nname: ${A_TOKEN}\noffset: {_target_: datetime.timedelta, hours: 1}\n",
        A_TOKEN=CANARY,
    )
    path = tmp_path / "c.yaml"
    config = load_config(path, environment={"A_TOKEN": CANARY}, allow_targets=["datetime"])
    assert str(config.instantiate()) == CANARY
