"""The read-back gate: an exported directory, loaded through Transformers or PEFT, is the model in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.adapter import CONFIG, load_adapter
from automodel_ckpt.errors import VerificationFailed
from automodel_ckpt.hf.probe import read_probe
from automodel_ckpt.hf.vocabulary import grow_for_adapter


@dataclass(frozen=True)
class ReadBackReport:
    """What the gate compared; ``max_difference`` is that of the logits, None where none were given."""

    kind: str
    num_tensors: int
    max_difference: float | None


def read_back(
    directory: str | os.PathLike,
    *,
    base: Any = None,
    inputs: dict[str, Tensor] | None = None,
    logits: Tensor | None = None,
    tolerance: float = 1e-4,
    allow_zero: bool = False,
    dtype: torch.dtype | None = None,
    columns: Tensor | None = None,
) -> ReadBackReport:
    """Load an exported directory as a stranger would and compare.

    Checks: no missing and no unexpected weights; every weight finite; of an adapter, every ``lora_B`` is not zero and
    PEFT adapts exactly the modules that were saved; the logits of ``inputs`` equal ``logits``.

    Args:
        directory: a model directory, or an adapter directory.
        base: for an adapter: the base model's directory (default: the one that its config names), or the plain base
            model itself, which PEFT then wraps in place.
        inputs: keyword arguments of a forward pass, such as ``{"input_ids": ids}``.
        logits: what the model in memory gives for them, in evaluation mode.
        tolerance: largest absolute difference of logits.
        allow_zero: accept ``lora_B`` of zeros: an adapter that has not been trained yet, or not everywhere.
        dtype: of an adapter's base model while it is compared; default: that of its files.
        columns: entries of the vocabulary that ``logits`` holds; default: all.

    Without ``logits`` those that the export kept for this purpose (`automodel_ckpt.hf.probe`) are compared, if any.

    Raises: VerificationFailed: says what differs.
    """
    if Path(directory, CONFIG).is_file():
        kind, (model, count) = "adapter", _load_adapter_model(directory, base, allow_zero, dtype)
    else:
        kind, (model, count) = "model", _load_model(directory)
    if logits is None and (probe := read_probe(directory)) is not None:
        inputs, columns, logits, tolerance = probe.inputs, probe.columns, probe.logits, probe.tolerance
    return ReadBackReport(kind, count, _compare(directory, model, inputs, columns, logits, tolerance))


def _load_model(directory: str | os.PathLike) -> tuple[Any, int]:
    model, info = _model_class(directory).from_pretrained(directory, output_loading_info=True)
    problems = [f"{key.replace('_keys', '')} {sorted(info[key])[:4]}" for key in _KEYS if info.get(key)]
    problems += [f"not finite {name}" for name, value in model.state_dict().items() if not _finite(value)]
    if problems:
        raise VerificationFailed(f"{directory} read back by Transformers: {'; '.join(problems)}. Export it again.")
    return model, len(model.state_dict())


def _model_class(directory: str | os.PathLike) -> Any:
    """The class that a model's configuration names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    return getattr(transformers, (config.architectures or ["AutoModel"])[0])


_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _load_adapter_model(
    directory: str | os.PathLike, base: Any, allow_zero: bool, dtype: torch.dtype | None
) -> tuple[Any, int]:
    import peft

    tensors, config = load_adapter(directory)
    problems = [f"not finite {name}" for name, value in tensors.items() if not _finite(value)]
    if not allow_zero:
        problems += [f"all zero {name}" for name, value in tensors.items() if ".lora_B." in name and not value.any()]
    if base is None:
        base = config.get("base_model_name_or_path")
    plain = (
        base if isinstance(base, torch.nn.Module) else _model_class(base).from_pretrained(base, dtype=dtype or "auto")
    )
    grow_for_adapter(plain, directory)
    model = peft.PeftModel.from_pretrained(plain, str(directory))
    # Left to itself PEFT would count a grown embedding as part of the adapter.
    loaded = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    if loaded.keys() != tensors.keys():
        differing = sorted(loaded.keys() ^ tensors.keys())
        problems.append(f"{len(differing)} names differ from what PEFT adapts, such as {differing[:3]}")
    else:
        problems += [
            f"differs {name}"
            for name, value in tensors.items()
            if not torch.equal(loaded[name].cpu().to(value.dtype), value)
        ]
    if problems:
        raise VerificationFailed(f"{directory} read back by PEFT: {'; '.join(problems[:6])}. Save it again.")
    return model, len(tensors)


def _compare(
    directory: str | os.PathLike,
    model: Any,
    inputs: dict[str, Tensor] | None,
    columns: Tensor | None,
    logits: Tensor | None,
    tolerance: float,
) -> float | None:
    if inputs is None or logits is None:
        return None
    with torch.no_grad():
        found = model.eval()(**inputs).logits
    found = found if columns is None else found[..., columns]
    difference = float((found.float().cpu() - logits.detach().float().cpu()).abs().max())
    if not difference <= tolerance:
        raise VerificationFailed(
            f"{directory}: logits differ by {difference:.3g}, more than {tolerance:g}, from the model in memory. "
            "Do not use the directory; compare it with the checkpoint: automodel-ckpt diff"
        )
    return difference
