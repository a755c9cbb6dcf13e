"""Importing the package loads nothing heavy, and every public name exists."""

import importlib.metadata
import subprocess
import sys

import automodel_kernels

HEAVY = ("triton", "transformer_engine", "transformers", "torchao", "torch")


def test_import_is_light():
    code = f"import sys, automodel_kernels; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_ops_without_kernels_load_neither_triton_nor_the_engine():
    code = (
        "import sys, torch; before = set(sys.modules); import automodel_kernels.ops, automodel_kernels.patch, "
        "automodel_kernels.loss, automodel_kernels.fp8, automodel_kernels.te; "
        f"print([m for m in {HEAVY!r} if m in sys.modules and m not in before])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names_exist_and_are_sorted():
    assert automodel_kernels.__all__ == sorted(automodel_kernels.__all__)
    for name in automodel_kernels.__all__:
        assert getattr(automodel_kernels, name) is not None


def test_entry_points_load():
    group = importlib.metadata.entry_points(group="automodel.components")
    ours = {point.name: point for point in group if point.value.startswith("automodel_kernels")}
    for name in ("fp8", "fp8_frozen_base", "kernels", "te_parallel_ce", "triton_ce", "triton_linear_ce"):
        assert callable(ours[name].load())
