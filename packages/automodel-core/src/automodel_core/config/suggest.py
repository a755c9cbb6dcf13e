"""Near names for a misspelt one."""

import difflib
from collections.abc import Iterable

# Names that users bring from other trainers, where spelling alone does not lead to ours.
_SYNONYMS = {
    "adapter": "peft",
    "batch_size": "global_batch_size",
    "data": "dataset",
    "epochs": "num_epochs",
    "gradient_clipping": "clip_grad_norm",
    "grad_acc_steps": "global_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "learning_rate": "lr",
    "lora": "peft",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_r": "dim",
    "micro_batch_size": "local_batch_size",
    "model_name": "pretrained_model_name_or_path",
    "output_dir": "checkpoint_dir",
    "per_device_train_batch_size": "local_batch_size",
    "r": "dim",
    "rank": "dim",
    "scheduler": "lr_scheduler",
    "torch_dtype": "dtype",
    "training": "step_scheduler",
    "warmup_steps": "lr_warmup_steps",
}


def near(name: str, options: Iterable[str]) -> str | None:
    """The option that ``name`` most likely means, or None when nothing is near."""
    allowed = list(options)
    candidates = {option: option for option in allowed}
    candidates |= {other: ours for other, ours in _SYNONYMS.items() if ours in allowed and other not in candidates}
    folded = {candidate.lower(): target for candidate, target in candidates.items()}
    matches = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.7)
    return folded[matches[0]] if matches else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``; did you mean "lr"?`` for a near option, else the allowed names (at most 12), else nothing."""
    allowed = sorted(options)
    match = near(name, allowed)
    if match:
        return f'; did you mean "{match}"?'
    if not allowed:
        return ""
    shown = ", ".join(allowed[:12]) + (", ..." if len(allowed) > 12 else "")
    return f"; allowed: {shown}"
