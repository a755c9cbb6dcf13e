"""``trust_remote_code`` needs the command line and a pinned commit."""

import pytest

from automodel_core.config import ConfigError, load_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load(tmp_path, section, **options):
    path = tmp_path / "c.yaml"
    path.write_text(f"model:\n  inner: {section}\n")
    return load_config(path, **options)


def test_refused_without_the_flag(tmp_path):
    with pytest.raises(ConfigError, match=r":2:\d+ model.inner.trust_remote_code: runs the repository's code"):
        load(tmp_path, f"{{trust_remote_code: true, revision: {COMMIT}}}")


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123456", COMMIT.upper(), COMMIT + "0"])
def test_refused_without_a_pinned_commit(tmp_path, revision):
    with pytest.raises(ConfigError, match="40-digit commit"):
        load(tmp_path, f"{{trust_remote_code: true, revision: '{revision}'}}", trust_remote_code=True)


def test_accepted_with_both(tmp_path):
    config = load(tmp_path, f"{{trust_remote_code: true, revision: '{COMMIT}'}}", trust_remote_code=True)
    assert config.model.inner.trust_remote_code is True


def test_false_is_harmless(tmp_path):
    assert load(tmp_path, "{trust_remote_code: false}").model.inner.trust_remote_code is False


@pytest.mark.parametrize("value", ["'true'", "1", "'yes'"])
def test_truthy_spellings_do_not_slip_through(tmp_path, value):
    with pytest.raises(ConfigError):
        load(tmp_path, f"{{trust_remote_code: {value}}}")


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal", "custom_pipelines"])
def test_keys_that_choose_code(tmp_path, key):
    with pytest.raises(ConfigError, match="would choose code to run"):
        load(tmp_path, f"{{{key}: x}}", trust_remote_code=True)
