"""DDP, FSDP2, megatron-fsdp, tensor, sequence, context, pipeline and expert parallelism for Hugging Face models."""

from importlib import import_module
from typing import Any

from automodel_parallel.__about__ import __version__

_HOMES = {
    "DDPManager": "ddp",
    "DistInfo": "init",
    "FSDP2Manager": "fsdp2",
    "MegatronFSDPManager": "megatron_fsdp",
    "NVFSDPManager": "megatron_fsdp",
    "ParallelContext": "context",
    "ParallelDims": "mesh",
    "ParallelReport": "report",
    "SingleProcessManager": "single",
    "assemble": "apply",
    "build_manager": "build",
    "init_distributed": "init",
    "shutdown": "init",
}

__all__ = [
    "DDPManager",
    "DistInfo",
    "FSDP2Manager",
    "MegatronFSDPManager",
    "NVFSDPManager",
    "ParallelContext",
    "ParallelDims",
    "ParallelReport",
    "SingleProcessManager",
    "__version__",
    "assemble",
    "build_manager",
    "init_distributed",
    "shutdown",
]


def __getattr__(name: str) -> Any:
    # torch is imported when a name is used, so that listing the package's components stays instant.
    if name in _HOMES:
        return getattr(import_module(f"automodel_parallel.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'automodel_parallel' has no attribute {name!r}")
