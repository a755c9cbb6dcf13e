"""Liger's kernels on one model instance (extra ``liger``)."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


def apply_liger(model: Any) -> None:
    """Patch a transformers model in place with ``liger-kernel``; nothing outside the instance changes.

    Rotary embeddings stay transformers' own: Liger can replace them for the whole process only.

    Raises: ImportError: the package is missing; ValueError: it has no kernels for this family.
    """
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise ImportError(
            "use_liger_kernel=True needs liger-kernel, which is not installed: run `pip install "
            "'automodel-core[liger]'`, "
            "or set use_liger_kernel: false."
        ) from error
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(
            f"use_liger_kernel=True on {model.config.model_type}: liger-kernel patches "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}. Set use_liger_kernel: false."
        )
    with _modules_unchanged():
        _apply_liger_kernel_to_instance(model=model, rope=False)


@contextlib.contextmanager
def _modules_unchanged() -> Iterator[None]:
    """Put back what Liger replaces in transformers' modules beside the instance: it would be in every later model.

    A teacher, or the plain model that an export is compared with, may have to run where Liger's kernels cannot.
    """
    loaded = [module for name, module in sys.modules.items() if name.startswith("transformers.models.")]
    before = [(module, dict(vars(module))) for module in loaded]
    try:
        yield
    finally:
        for module, names in before:
            for name in (name for name, value in names.items() if vars(module).get(name) is not value):
                setattr(module, name, names[name])
