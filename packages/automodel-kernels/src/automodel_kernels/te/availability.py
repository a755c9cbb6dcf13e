"""Whether Transformer Engine can be used, and in one line why not: it comes in three wheels that must match."""

import functools
import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

PARTS = ("transformer_engine", "transformer_engine_torch")
CORES = ("transformer_engine_cu13", "transformer_engine_cu12")
INSTALL = "pip install --no-build-isolation 'transformer-engine[pytorch]'"
# A broken installation raises on import: missing extension or library, undefined symbol, version check.
FAILURES = (ImportError, FileNotFoundError, OSError, RuntimeError, AssertionError, AttributeError)


class TEUnavailableError(ImportError):
    """Transformer Engine was asked for and cannot be used."""


def require_te() -> ModuleType:
    """Import and return ``transformer_engine.pytorch``.

    Raises: TEUnavailableError: with the reason and what to install.
    """
    missing = te_missing()
    if missing:
        raise TEUnavailableError(
            f"Transformer Engine cannot be used: {missing}. Install it, or choose the torch backend."
        )
    return importlib.import_module("transformer_engine.pytorch")


@functools.cache
def te_missing() -> str:
    """Return why Transformer Engine cannot be used here, or an empty string."""
    return _packages_missing() or _versions_differ() or _import_fails()


def te_version() -> str:
    """The installed version of the meta package, or an empty string."""
    return _version("transformer_engine")


def _packages_missing() -> str:
    if importlib.util.find_spec("transformer_engine") is None:
        return f"transformer-engine is not installed ({INSTALL})"
    absent = [part for part in PARTS if not _version(part)]
    if not any(map(_version, CORES)):
        absent.append(" or ".join(CORES))
    return f"half installed, without {', '.join(absent)} ({INSTALL})" if absent else ""


def _versions_differ() -> str:
    versions = {part: _version(part) for part in (*PARTS, *CORES) if _version(part)}
    if len(set(versions.values())) <= 1:
        return ""
    listed = ", ".join(f"{part} {version}" for part, version in versions.items())
    return f"its parts have different versions ({listed}); they must be equal"


def _import_fails() -> str:
    try:
        importlib.import_module("transformer_engine.pytorch")
    except FAILURES as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        return f"it does not import: {type(error).__name__}: {first}"
    return ""


def _version(part: str) -> str:
    try:
        return importlib.metadata.version(part)
    except importlib.metadata.PackageNotFoundError:
        return ""
