"""The ``checkpoint:`` section of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from automodel_ckpt.retention import Keep

SAVE_FORMATS = ("safetensors", "torch_save")
CONSOLIDATE = (False, "final", "every")


@dataclass(frozen=True)
class CheckpointingConfig:
    """When and how a run saves; every field is a key of the YAML section ``checkpoint``."""

    enabled: bool = True
    """Write checkpoints at all."""
    checkpoint_dir: str = "checkpoints"
    """Directory of the run; must not hold another run."""
    model_save_format: str = "safetensors"
    """``torch_save`` writes a stock torch distributed checkpoint too, for other tools; resuming never reads it."""
    save_consolidated: bool | str = "final"
    """Also write a Hugging Face directory: ``False``, ``"final"`` (when training ends), ``"every"`` or ``True``."""
    is_async: bool = False
    """Write in the background; training waits for the copy of the weights only."""
    restore_from: str | None = None
    """Checkpoint, or directory of them, to start from; None: the newest in ``checkpoint_dir``, if any."""
    max_recent_checkpoints: int | None = 2
    """How many of the newest to keep; None keeps all."""
    best_metric_key: str | None = None
    """Metric (lower is better) whose best checkpoint is kept as well; a leading ``-`` means higher is better."""
    model_cache_dir: str | None = None
    """Where base weights are cached, as Hugging Face's ``cache_dir``."""
    model_repo_id: str | None = None
    """Name or path of the base model, recorded in exported files."""
    is_peft: bool = False
    """The run trains an adapter: only its tensors are saved."""

    def __post_init__(self) -> None:
        if self.model_save_format not in SAVE_FORMATS:
            raise ValueError(
                f"model_save_format={self.model_save_format!r}: allowed are {', '.join(SAVE_FORMATS)}. Use safetensors."
            )
        if self.save_consolidated is True:
            object.__setattr__(self, "save_consolidated", "every")
        if self.save_consolidated not in CONSOLIDATE:
            raise ValueError(f"save_consolidated={self.save_consolidated!r}: allowed are false, 'final' and 'every'.")
        if self.max_recent_checkpoints is not None and self.max_recent_checkpoints < 1:
            raise ValueError(
                f"max_recent_checkpoints={self.max_recent_checkpoints}: at least 1 is kept. Use 1, or null to keep all."
            )

    @property
    def keep(self) -> Keep:
        """The retention rule."""
        best = None
        if self.best_metric_key is not None:
            best = (self.best_metric_key.removeprefix("-"), "max" if self.best_metric_key.startswith("-") else "min", 1)
        return Keep(last=self.max_recent_checkpoints, best=best)
