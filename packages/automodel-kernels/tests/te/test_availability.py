"""Every way in which Transformer Engine is absent has its own line."""

import pytest

from automodel_kernels import doctor
from automodel_kernels.te import availability, require_te, surface
from automodel_kernels.te.availability import TEUnavailableError


@pytest.fixture(autouse=True)
def _no_cache():
    availability.te_missing.cache_clear()
    yield
    availability.te_missing.cache_clear()


def install(monkeypatch, versions, error=None):
    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(availability, "_version", lambda part: versions.get(part, ""))

    def import_module(name):
        raise error

    if error is not None:
        monkeypatch.setattr(availability.importlib, "import_module", import_module)


WHOLE = dict.fromkeys(("transformer_engine", "transformer_engine_torch", "transformer_engine_cu13"), "2.20.2")


def test_absent():
    with pytest.raises(TEUnavailableError, match=r"transformer-engine is not installed \(pip install"):
        require_te()


def test_half_installed(monkeypatch):
    install(monkeypatch, {"transformer_engine": "2.20.2"})
    expected = "half installed, without transformer_engine_torch, transformer_engine_cu13 or transformer_engine_cu12"
    assert expected in availability.te_missing()


def test_versions_differ(monkeypatch):
    install(monkeypatch, {**WHOLE, "transformer_engine_torch": "2.19.0"})
    assert "different versions" in availability.te_missing()
    assert "transformer_engine_torch 2.19.0" in availability.te_missing()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no module"),
        FileNotFoundError("libcudnn.so.9"),
        OSError("undefined symbol: _ZN3c10"),
        RuntimeError("found empty `transformer-engine` meta package"),
        AssertionError("version mismatch"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_broken_imports_give_their_first_line(monkeypatch, error):
    install(monkeypatch, WHOLE, error)
    assert availability.te_missing() == f"it does not import: {type(error).__name__}: {error}"


def test_old_release():
    with pytest.raises(TEUnavailableError, match=r"Transformer Engine 1\.13\.0: releases from 2\.4 on are supported"):
        surface.surface("1.13.0")


def test_doctor_has_a_line_for_each_part():
    lines = doctor()
    assert sorted(lines) == ["fp8", "kernels", "torchao", "transformer-engine", "triton"]
    assert "not installed" in lines["transformer-engine"]
    assert all(isinstance(line, str) and "\n" not in line for line in lines.values())
