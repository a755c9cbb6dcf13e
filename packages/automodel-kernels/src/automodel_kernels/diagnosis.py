"""What can run here and, if not, why: one line per backend."""

import importlib.metadata

import torch


def doctor() -> dict[str, str]:
    """Return ``{component: "ok ..." or the reason}`` for triton, transformer-engine, torchao, FP8 and the kernels."""
    from automodel_kernels.backend import triton_missing
    from automodel_kernels.fp8.availability import fp8_missing
    from automodel_kernels.te.availability import te_missing

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "kernels": triton_missing(device) or f"ok on {device}",
        "triton": _version("triton"),
        "transformer-engine": te_missing() or f"ok {_version('transformer_engine')}",
        "torchao": _version("torchao"),
        "fp8": fp8_missing() or "ok",
    }


def _version(distribution: str) -> str:
    try:
        return f"ok {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"not installed (pip install {distribution})"
