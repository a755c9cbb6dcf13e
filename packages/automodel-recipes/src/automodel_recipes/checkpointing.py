"""What a run saves and how it comes back: the recipe's side of automodel_ckpt."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_ckpt import CheckpointingConfig
from automodel_recipes.errors import RecipeError
from automodel_recipes.evaluate import named_metrics
from automodel_recipes.identity import RunIdentity
from automodel_recipes.places import checkpoint_path

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.loop import TrainSummary


class RunCheckpointer:
    """Saves checkpoints during a run, restores one at its start, writes the final weights at its end.

    ``RUN/step-N`` are the checkpoints. Beside them, for as long as their checkpoint is kept, lie ``RUN/hf/step-N``
    (``save_consolidated: every``) and ``RUN/dcp/step-N`` (``model_save_format: torch_save``).
    """

    def __init__(self, recipe: "BaseRecipe") -> None:
        self.r = recipe
        section = recipe.config.get("checkpoint")
        keys = {} if section is None else section.to_dict()
        self.settings = CheckpointingConfig(
            enabled=bool(keys.get("enabled", False)),
            model_save_format=keys.get("model_save_format", "safetensors"),
            save_consolidated=keys.get("save_consolidated", "final"),
            is_async=bool(keys.get("is_async", False)),
            max_recent_checkpoints=keys.get("max_recent_checkpoints", 2),
            best_metric_key=keys.get("best_metric_key") or _followed(recipe),
            restore_from=keys.get("restore_from"),
        )
        self.enabled = self.settings.enabled
        self.read_back = bool(keys.get("read_back", True))
        self.first_checked = False
        self._said_why_not = False
        self._saver: Any = None
        self._identity = RunIdentity(recipe)
        if self.enabled:
            self._identity.establish()
        self._step_on_disk: int | None = None  # saved by this run, or where it went on from

    def state(self) -> dict[str, Any]:
        """Sections in the order of loading: weights first, random state last."""
        r = self.r
        state: dict[str, Any] = {"model": r.unwrapped(), "optim": r.optimizer}
        if r.ema is not None:
            state["ema"] = r.ema
        state["train"] = {
            "step_scheduler": r.step_scheduler,
            "lr_schedule": r.lr_schedule,
            "dataloader": r.train_loader,
            "watchdog": r.watchdog,
            "identity": self._identity,
        }
        if r.early_stopping is not None:
            state["train"]["early_stopping"] = r.early_stopping
        if r.loss_scaler is not None:
            state["train"]["loss_scaler"] = r.loss_scaler
        state["rank"] = {"rng": r.rng}
        if r.neftune is not None:
            state["rank"]["neftune"] = r.neftune
        return state

    def save(self, summary: "TrainSummary") -> None:
        """Write a checkpoint of the current step, if checkpoints are enabled; with ``is_async``, begin to.

        Raises: SaveFailed and others of `automodel_ckpt.save`; with ``is_async`` also for the save before this one.
            VerificationFailed: the weights do not load through transformers or PEFT.
            NonFiniteLossError: a weight is not finite.
        """
        r = self.r
        if not self.enabled or r.options.dry_run or self._step_on_disk == r.step_scheduler.step:
            return
        from automodel_recipes.weights import refuse_non_finite

        refuse_non_finite(r)
        keys = {
            "step": r.step_scheduler.step,
            "metrics": self._metrics(summary),
        }
        options = {"keep": self.settings.keep, "trainable_only": r.built.peft is not None}
        if self.settings.is_async:
            from automodel_ckpt import AsyncSaver

            self.wait()
            if self._saver is None:
                self._saver = AsyncSaver(r.run_dir.path, **options)
            self._saver.save(self.state(), **keys)
        else:
            from automodel_ckpt import save

            self._published(save(r.run_dir.path, self.state(), **keys, **options))
        self._step_on_disk = r.step_scheduler.step
        self._write_companions()
        self._check_first()

    def _metrics(self, summary: "TrainSummary") -> dict[str, float]:
        """What was measured at the very step that is saved, also by the set's name alone for its loss."""
        if summary.validated_step != self.r.step_scheduler.step:
            return {}
        losses = {name: metrics.loss for name, metrics in summary.validation.items()}
        return {**losses, **named_metrics(summary.validation)}

    def wait(self) -> None:
        """Wait for a save in the background to be published.

        Raises: SaveFailed: it failed.
        """
        path = self._saver.wait() if self._saver is not None else None
        if path is not None:
            self._published(path)

    def close(self) -> None:
        """Wait for a save in the background and end its thread."""
        if self._saver is not None:
            try:
                self.wait()
            finally:
                self._saver.close()
                self._saver = None

    def _published(self, path: Path) -> None:
        self.r.records.event("checkpoint", path=str(path))

    def _write_companions(self) -> None:
        """Forms of the current step for other tools; those whose checkpoint is gone go as well."""
        r = self.r
        name = f"step-{r.step_scheduler.step:08d}"
        if self.settings.save_consolidated == "every":
            from automodel_recipes.weights import write_weights

            with r.as_exported():
                write_weights(r, r.run_dir.path / "hf" / name, overwrite=True)
            self._prune("hf", name)
        if self.settings.model_save_format == "torch_save":
            from automodel_ckpt import save_dcp

            save_dcp(r.run_dir.path / "dcp" / name, r.unwrapped(), r.optimizer)
            self._prune("dcp", name)

    def _prune(self, form: str, current: str) -> None:
        if not self.r.parallel.is_main:
            return
        run = self.r.run_dir.path
        for directory in (run / form).glob("step-*"):
            if directory.name != current and not (run / directory.name).is_dir():
                shutil.rmtree(directory)

    def _check_first(self) -> None:
        """Prove at the first save that the weights load elsewhere, where the start could not show it."""
        if self.first_checked or not self.reads_back():
            return
        self.first_checked = True
        from automodel_recipes.weights import check_first_export

        with self.r.as_exported():
            check_first_export(self.r)

    def reads_back(self) -> bool:
        """Whether weights are loaded as others would; where they cannot be, the reason is said once."""
        from automodel_recipes.weights import why_not_readable

        if not self.read_back or self.settings.save_consolidated is False:
            return False
        reason = why_not_readable(self.r)
        if reason is not None and not self._said_why_not:
            self._said_why_not = True
            self.r.console.fact("weights", f"not read back: {reason}")
        return reason is None

    def resume(self) -> None:
        """Load the checkpoint that the run starts from."""
        source: Path | str | None = self.r.run_dir.resume_from
        if source is None and self.settings.restore_from:
            named = self.settings.restore_from
            source = named if "://" in named else Path(checkpoint_path(named))
        if source is None:
            return
        from automodel_ckpt import load

        load(source, self.state())
        self._step_on_disk = self.r.step_scheduler.step
        self.r.records.resumed(source)

    def write_final(self) -> Path | None:
        """Write the finished weights in Hugging Face format (a PEFT directory for LoRA) to ``RUN/final``.

        Returns: the directory; None with ``save_consolidated: false``.
        Raises: RecipeError: the place is taken by something that this run did not write. VerificationFailed: what was
            written does not load as the model in memory.
        """
        from automodel_recipes.weights import check_readable, refuse_non_finite, write_weights

        r = self.r
        self.wait()
        if self.settings.save_consolidated is False:
            return None
        refuse_non_finite(r)
        target = r.run_dir.final
        # Every rank has looked before rank 0 writes: a late one would take its work for another run's.
        if r.parallel.any_rank(target.exists()) and r.run_dir.resume_from is None:
            raise RecipeError(f"{target} exists already. Move it away, or choose another checkpoint.checkpoint_dir.")
        with r.as_exported():
            write_weights(r, target, overwrite=True)
            if self.reads_back():
                check_readable(r, target)
        return target


def _followed(r: "BaseRecipe") -> str | None:
    """The metric of ``early_stopping`` as a key of checkpoints: with a leading ``-`` where higher is better."""
    stopping = r.early_stopping
    return None if stopping is None else ("-" if stopping.mode == "max" else "") + stopping.metric


def claim_directory(r: "BaseRecipe") -> None:
    """Keep other runs out of the run's directory until this process ends or `release_directory`; on every rank.

    Raises: LeaseHeld: another process writes there, with its id and host; RecipeError on the other ranks.
    """
    from automodel_ckpt import LeaseHeld
    from automodel_ckpt.lease import acquire

    held: LeaseHeld | None = None
    if r.parallel.is_main and not r.options.dry_run:
        try:
            acquire(r.run_dir.path)
        except LeaseHeld as error:
            held = error
    if r.parallel.any_rank(held is not None):
        raise held or RecipeError(f"{r.run_dir.path} is being written by another run; rank 0 says by which. Stop it.")


def release_directory(r: "BaseRecipe") -> None:
    """Let other runs in."""
    from automodel_ckpt.lease import release

    if r.parallel.is_main:
        release(r.run_dir.path)
