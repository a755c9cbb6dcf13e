"""What a run saves and how it comes back: the recipe's side of automodel_ckpt."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_ckpt import CheckpointingConfig
from automodel_recipes.errors import RecipeError

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.loop import TrainSummary


class RunCheckpointer:
    """Saves checkpoints during a run, restores one at its start, writes the final weights at its end."""

    def __init__(self, recipe: "BaseRecipe") -> None:
        self.r = recipe
        section = recipe.config.get("checkpoint")
        keys = {} if section is None else section.to_dict()
        self.settings = CheckpointingConfig(
            enabled=bool(keys.get("enabled", False)),
            max_recent_checkpoints=keys.get("max_recent_checkpoints", 2),
            best_metric_key=keys.get("best_metric_key"),
            restore_from=keys.get("restore_from"),
        )
        self.enabled = self.settings.enabled

    def _state(self) -> dict[str, Any]:
        """Sections in the order of loading: weights first, random state last."""
        r = self.r
        return {
            "model": r.unwrapped(),
            "optim": r.optimizer,
            "train": {
                "step_scheduler": r.step_scheduler,
                "lr_schedule": r.lr_schedule,
                "dataloader": r.train_loader,
            },
            "rank": {"rng": r.rng},
        }

    def save(self, summary: "TrainSummary") -> Path | None:
        """Write a checkpoint of the current step, if checkpoints are enabled."""
        if not self.enabled or self.r.options.dry_run:
            return None
        from automodel_ckpt import save

        r = self.r
        path = save(
            r.run_dir.path,
            self._state(),
            step=r.step_scheduler.step,
            keep=self.settings.keep,
            trainable_only=r.built.peft is not None,
            metrics={name: metrics.loss for name, metrics in summary.validation.items()},
        )
        r.records.event("checkpoint", path=str(path))
        return path

    def resume(self) -> None:
        """Load the checkpoint that the run starts from."""
        source = self.r.run_dir.resume_from or (
            Path(self.settings.restore_from) if self.settings.restore_from else None
        )
        if source is None:
            return
        from automodel_ckpt import load

        load(source, self._state())
        self.r.records.resumed(source)

    def write_final(self) -> Path:
        """Write the finished weights in Hugging Face format (a PEFT directory for LoRA) to ``RUN/final``.

        Raises: RecipeError: the place is taken by something that this run did not write.
        """
        r = self.r
        target = r.run_dir.final
        if target.exists() and r.run_dir.resume_from is None:
            raise RecipeError(f"{target} exists already. Move it away, or choose another checkpoint.checkpoint_dir.")
        model = r.unwrapped()
        if r.built.peft is not None:
            from automodel_ckpt import save_adapter
            from automodel_core.peft import adapter_config, adapter_state_dict

            tensors = adapter_state_dict(model)
            config = adapter_config(model, r.built.peft)
            save_adapter(target, tensors, config, tokenizer=r.tokenizer, processor=r.processor, overwrite=True)
        else:
            from automodel_ckpt import export_hf

            export_hf(model, target, tokenizer=r.tokenizer, processor=r.processor, overwrite=True)
        return target
