"""Checkpoints that survive crashes, resume exactly and load straight back into Hugging Face and PEFT."""

from __future__ import annotations

import importlib
from typing import Any

from automodel_ckpt.__about__ import __version__

_HOMES = {
    "AlreadyExists": "errors",
    "AsyncSaver": "async_save",
    "CheckpointError": "errors",
    "CheckpointNotFound": "errors",
    "CorruptCheckpoint": "errors",
    "CheckpointingConfig": "config",
    "Keep": "retention",
    "LeaseHeld": "errors",
    "LoadFailed": "errors",
    "LoadReport": "loading",
    "ModelState": "stateful",
    "OptimizerState": "stateful",
    "SaveFailed": "errors",
    "StateMismatch": "errors",
    "UnsafeFile": "errors",
    "UnsupportedState": "errors",
    "VerifyReport": "verification",
    "VerificationFailed": "errors",
    "best": "directory",
    "consolidate": "hf.consolidate",
    "export_hf": "hf.export",
    "gc": "retention",
    "grow_for_adapter": "hf.vocabulary",
    "latest": "directory",
    "load": "loading",
    "load_adapter": "adapter",
    "load_base_weights": "hf.base_weights",
    "merge": "hf.merge",
    "read_back": "hf.readback",
    "save": "saving",
    "save_adapter": "adapter",
    "save_dcp": "stateful",
    "verify": "verification",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
