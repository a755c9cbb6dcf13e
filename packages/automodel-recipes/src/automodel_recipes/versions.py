"""Installed versions of packages."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

OWN = (
    "automodel-core",
    "automodel-parallel",
    "automodel-kernels",
    "automodel-data",
    "automodel-ckpt",
    "automodel-recipes",
)
DECIDING = ("torch", "transformers", "peft", "safetensors", "datasets", "triton", *OWN)
"""The packages that decide a run's numbers."""


def installed_versions(names: Iterable[str] = DECIDING) -> dict[str, str]:
    """Versions by package name, in the order of ``names``; packages that are not there are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
