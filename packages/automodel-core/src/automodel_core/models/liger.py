"""Liger's kernels on one model instance (extra ``liger``)."""

from typing import Any


def apply_liger(model: Any) -> None:
    """Patch a transformers model in place with ``liger-kernel``; nothing outside the instance changes.

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
    _apply_liger_kernel_to_instance(model=model)
