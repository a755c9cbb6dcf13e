"""The weights of a run in Hugging Face or PEFT format, and the proof that a stranger can load them."""

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from automodel_recipes.errors import NonFiniteLossError, RecipeError
from automodel_recipes.evaluate import eval_mode

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe

_NUM_PROBE_TOKENS = 16
# Largest difference of logits, relative to the largest logit: the reader runs on the CPU, perhaps with other kernels.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}


def write_weights(r: "BaseRecipe", target: Path, *, overwrite: bool) -> Path:
    """Write the model as it is, or its adapter; called by every rank."""
    model = r.unwrapped()
    keys: dict[str, Any] = {"tokenizer": r.tokenizer, "processor": r.processor, "overwrite": overwrite}
    if r.parallel.pipeline is not None:
        from automodel_recipes.stage_weights import write_stage_weights

        return write_stage_weights(r, target, **keys)
    keys["extra_files"] = _probe_file(r)
    if r.built.peft is None:
        from automodel_ckpt import export_hf

        return export_hf(model, target, **keys)
    from automodel_ckpt import save_adapter
    from automodel_core.peft import adapter_config, adapter_state_dict

    return save_adapter(target, adapter_state_dict(model), adapter_config(model, r.built.peft), **keys)


def _probe_file(r: "BaseRecipe") -> dict[str, str]:
    """What the model in memory gives for a short row, for ``ckpt verify``; nothing where it cannot be asked."""
    inputs, logits = _probe(r)
    if inputs is None or logits is None:
        return {}
    from automodel_ckpt.hf.probe import PROBE, probe_text

    return {PROBE: probe_text(inputs, logits, tolerance=_tolerance(r, logits))}


def _tolerance(r: "BaseRecipe", logits: torch.Tensor) -> float:
    return max(1.0, float(logits.float().abs().max())) * _TOLERANCE.get(_compute_dtype(r), 0.0)


def refuse_non_finite(r: "BaseRecipe") -> None:
    """Look at every weight that trains before it is published; called by every rank.

    A step with bad gradients is skipped, but finite gradients can still overflow a weight.

    Raises: NonFiniteLossError: some weight is NaN or infinite; names the first of them.
    """
    named = [(name, _local(p.detach())) for name, p in r.unwrapped().named_parameters() if p.requires_grad]
    finite = torch.stack([torch.isfinite(part).all() for _, part in named]).tolist() if named else []
    bad = [name for (name, _), good in zip(named, finite, strict=True) if not good]
    if r.parallel.any_rank(bool(bad)):
        raise NonFiniteLossError(
            f"{len(bad)} weights on rank {r.parallel.rank} are not finite{', such as ' + bad[0] if bad else ''}: they "
            "are not written. Go on from the last checkpoint with a lower optimizer.lr."
        )


def check_readable(r: "BaseRecipe", directory: Path) -> None:
    """Load what `write_weights` wrote through transformers or PEFT on rank 0; compare names, values and logits.

    Every rank calls it: sharded models need all of them for a forward pass. Random states stay as they are.

    Raises: VerificationFailed: what was written is not the model in memory; RecipeError on the other ranks.
    """
    before = r.rng.state_dict()
    inputs, logits = _probe(r)
    failure: Exception | None = None
    if r.parallel.is_main:
        from automodel_ckpt import CheckpointError, read_back

        tolerance = 0.0 if logits is None else _tolerance(r, logits)
        try:
            read_back(directory, inputs=inputs, logits=logits, tolerance=tolerance, allow_zero=True, dtype=_dtype(r))
        except (CheckpointError, OSError, ValueError, RuntimeError) as error:
            failure = error
    r.rng.load_state_dict(before)
    if r.parallel.any_rank(failure is not None):
        raise failure or RecipeError(f"{directory} could not be read back; rank 0 says why. Look at its message.")


def check_first_export(r: "BaseRecipe") -> None:
    """Write the weights into a hidden directory of the run, read them back, and delete them."""
    directory = r.run_dir.path / ".read-back"  # one level down: a save in the background sweeps the run's own level
    try:
        check_readable(r, write_weights(r, directory / "weights", overwrite=True))
    finally:
        if r.parallel.is_main:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)


def why_not_readable(r: "BaseRecipe") -> str | None:
    """Why this run's weights cannot be read back, if they cannot."""
    if r.built.peft is None:
        return None
    config = getattr(r.unwrapped(), "config", None)
    base = Path(str(getattr(config, "_name_or_path", "") or ""))
    if not base.is_dir():
        return "the base model is not a local directory"
    if not any(base.glob("*.safetensors")) and not any(base.glob("*.bin")) and not any(base.glob("*.gguf")):
        return f"{base} holds no weights: the base was made at random, and the adapter fits nothing else"
    if type(r.unwrapped()).__name__.endswith("ForSequenceClassification"):
        return "a reader builds the base by its own class, which may have no classification head"
    return None


def _probe(r: "BaseRecipe") -> tuple[dict[str, torch.Tensor] | None, torch.Tensor | None]:
    """A short row of ids and the logits of the model in memory; None where the model cannot be asked so."""
    model = r.unwrapped()
    if r.built.fp8 is not None:
        return None, None  # it rounds every product, so that a plain reader's logits are others
    if getattr(model, "is_quantized", False) or _dtype(r) not in _TOLERANCE:
        return None, None
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(1, 1 + _NUM_PROBE_TOKENS).remainder(min(vocabulary, 64))[None]
    with torch.no_grad(), eval_mode(model), r.answering() as whole:
        logits = whole(input_ids=ids.to(r.device), use_cache=False).logits
    logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
    return {"input_ids": ids}, logits.float().cpu()


def _dtype(r: "BaseRecipe") -> torch.dtype:
    return next(r.unwrapped().parameters()).dtype


def _compute_dtype(r: "BaseRecipe") -> torch.dtype:
    """What the model in memory multiplies in."""
    named = r.config.get("mixed_precision.dtype", "bfloat16") if r.config.get("mixed_precision") is not None else None
    named = named or r.config.get("distributed.mp_policy.param_dtype")
    return getattr(torch, str(named).removeprefix("torch."), None) or _dtype(r)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
