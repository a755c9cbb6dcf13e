"""The outline of every recipe: build in a fixed order, train, evaluate."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_core.loss import count_label_tokens, forward_loss, shift_labels
from automodel_core.training import StatefulRNG, StepScheduler
from automodel_parallel import assemble, shutdown
from automodel_recipes.batches import Batch
from automodel_recipes.build.data import global_batch_size
from automodel_recipes.build.model import ModelBuild, build_model, refuse_other_tokenizer
from automodel_recipes.build.optim import build_loss, build_lr_schedule, build_recipe_optimizer
from automodel_recipes.build.parallel import build_dist_info, build_parallel, usable_layout
from automodel_recipes.build.training import build_ema, build_loss_scaler, build_neftune, build_watchdog
from automodel_recipes.checkpointing import RunCheckpointer, claim_directory, release_directory
from automodel_recipes.decoding import ThroughPipeline
from automodel_recipes.early_stopping import EarlyStopping
from automodel_recipes.evaluate import EvalMetrics, evaluate_loss
from automodel_recipes.interrupt import GO_ON, SAVE, StopAgreed, StopRequest
from automodel_recipes.loggers.console import Console
from automodel_recipes.loggers.trackers import require_trackers
from automodel_recipes.loop import TrainSummary, train_loop
from automodel_recipes.options import TrainOptions
from automodel_recipes.phase_times import NoPhaseTimes, PhaseTimes
from automodel_recipes.preflight import preflight
from automodel_recipes.profiling import build_profiler
from automodel_recipes.records import RunRecords
from automodel_recipes.run_dir import choose_run_directory, default_run_path
from automodel_recipes.run_memory import RunMemory
from automodel_recipes.supervised_text import ByteCount


class BaseRecipe:
    """Builds a run from a configuration and drives it.

    ``setup`` builds everything in the assembly order, ``train`` runs the loop and writes the final weights,
    ``evaluate`` measures the validation sets. Subclasses say what the data are (``build_data``) and, where it
    differs, how a batch is prepared and turned into a loss. Two recipes can live in one process, one after the other.
    """

    name = "base"
    writes_text = True
    """Whether the model can be talked to."""
    counts_correct = True
    """Whether validation can count right tokens: the loss is one of contract C2."""

    phases: PhaseTimes | NoPhaseTimes = NoPhaseTimes()
    """Where time goes; the loop times it where ``monitoring.phase_times`` is set."""

    # Set by ``build_data``.
    train_loader: Any
    eval_loaders: dict[str, Any]
    eval_rows: Any
    data_facts: Any
    first_row: Sequence[tuple[str, bool]] = ()
    """The first training row as text, in pieces with whether each is trained; for the start screen."""

    def __init__(self, config: ConfigNode, options: TrainOptions | None = None) -> None:
        self.config = config
        self.options = options or TrainOptions()
        self.stop = StopRequest()
        self.eval_bytes = ByteCount()
        self.processor: Any = None  # written beside the weights by recipes that have one

    # Building, in order.

    def setup(self) -> None:
        """Build the run: processes, model, data, optimisation, records; then resume if asked to."""
        self.started = time.monotonic()
        self.build_environment()
        self.open_directory()
        self.build_tokenizer()
        self.build_model()
        self.build_data()
        self.build_optimization()
        self.profiler = build_profiler(self.config, self.run_dir.path / "profile", self.device, rank=self.parallel.rank)
        self.records = RunRecords(self)
        self.memory = RunMemory(self)
        self.memory.make_estimate()
        if self.options.preflight:
            preflight(self)
        self.checkpointer = RunCheckpointer(self)
        self.checkpointer.resume()

    def build_environment(self) -> None:
        """Process group, device, parallel layout, seeds, console."""
        require_trackers(self.config)
        joined = torch.distributed.is_initialized()
        self.dist_info = build_dist_info(self.config)
        self.parallel = build_parallel(self.config, self.dist_info)
        self.opened_process_group = torch.distributed.is_initialized() and not joined
        self.device: torch.device = self.parallel.device
        self.seed = int(self.config.get("seed", self.config.get("rng.seed", 42)))
        ranked = bool(self.config.get("rng.ranked", True))
        self.rng = StatefulRNG(self.seed + (self.parallel.random_stream if ranked else 0))
        self.stall_warning_s = float(self.config.get("monitoring.stall_warning_s", 60.0))
        self.console = Console(enabled=self.parallel.is_main and not self.options.quiet)

    def open_directory(self) -> None:
        """Choose the run's directory before anything heavy is loaded; refuse one that holds another run."""
        named = self.config.get("checkpoint.checkpoint_dir")
        path = Path(named) if named else default_run_path(self.name, seconds=self._shared_seconds())
        self.run_dir = choose_run_directory(path, self.options.resume)
        # Every rank has looked before any rank writes.
        self.parallel.any_rank(False)
        claim_directory(self)

    def _shared_seconds(self) -> int:
        """The same wall-clock second on every rank."""
        now = torch.tensor(int(time.time()), dtype=torch.int64, device=self.device)
        if self.parallel.world_size > 1:
            torch.distributed.all_reduce(now, op=torch.distributed.ReduceOp.MAX)
        return int(now)

    def build_tokenizer(self) -> None:
        """What turns text into ids; VLM recipes build a processor here as well."""
        from automodel_recipes.build.data import build_tokenizer

        self.tokenizer = build_tokenizer(self.config)

    def build_model(self) -> None:
        """Base weights, freezing, LoRA, kernels; then the parallel layout."""
        self.built: ModelBuild = build_model(
            self.config,
            seed=self.seed,
            tokenizer=self.tokenizer,
            device=self.device,
            sharded=self.parallel.shards_parameters,
            num_stages=self.parallel.dims.pp,
        )
        refuse_other_tokenizer(self.built.model, self.tokenizer)
        with usable_layout():
            self._check_layout()
            done = assemble(self.built.model, self.parallel, load=self.built.load, initialize=self.built.initialize)
        self.model = done.model
        self.built.reports += [done.parallel, *done.reports]
        self.neftune = build_neftune(self.config, self.unwrapped(), seed=self.seed + self.parallel.dp_rank)
        self.loss_fn = build_loss(self.config)

    def _check_layout(self) -> None:
        """Raises: ValueError: the recipe's own way to a loss cannot be cut into stages or along the sequence."""
        dims = self.parallel.dims
        if type(self).forward_loss is not BaseRecipe.forward_loss and max(dims.pp, dims.cp) > 1:
            raise ValueError(
                f"pp_size {dims.pp}, cp_size {dims.cp} with {type(self).__name__}, whose loss needs whole sequences "
                "and whole models. Set both to 1; tp_size and data ranks are free."
            )

    def build_data(self) -> None:
        """Set ``train_loader``, ``eval_loaders`` and, for generated answers, ``eval_rows``."""
        raise TypeError(f"{type(self).__name__} defines no data: use a subclass such as LLMFinetuneRecipe.")

    def build_optimization(self) -> None:
        """Step scheduler, optimizer, learning-rate schedule, clipping, and what watches and averages the steps."""
        section = self.config.get("step_scheduler")
        keys = {} if section is None else section.to_dict()
        keys.pop("log_every_steps", None)
        keys["global_batch_size"] = global_batch_size(self.config, self.parallel.dp_size)
        keys.setdefault("local_batch_size", 1)
        keys.pop("grad_acc_steps", None)
        self.step_scheduler = StepScheduler(dataloader=self.train_loader, dp_size=self.parallel.dp_size, **keys)
        optimizer = build_recipe_optimizer(self.config, self.unwrapped())
        self.optimizer = self.parallel.prepare_optimizer(optimizer)
        self.lr_schedule = build_lr_schedule(self.config, self.optimizer, self.step_scheduler.total_steps)
        self.max_grad_norm: float | None = self.config.get("clip_grad_norm.max_norm", 1.0)
        self.loss_scaler = build_loss_scaler(self.config)
        self.watchdog = build_watchdog(self.config)
        self.ema = build_ema(self.config, self.unwrapped())
        stopping = self.config.get("early_stopping")
        self.early_stopping = None if stopping is None else EarlyStopping(**stopping.to_dict())

    # What a batch means; recipes with other targets override these three.

    def prepare(self, batch: Batch) -> Batch:
        """Turn a batch on the device into what the loss sees: labels shifted, the only place that shifts."""
        return shift_labels(batch)

    def count_targets(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Supervised targets in this rank's prepared batches, int64 scalar."""
        return count_label_tokens(batches)

    def forward_loss(self, batch: Batch, num_targets: torch.Tensor) -> torch.Tensor:
        """The sum of target losses of one prepared batch over ``num_targets``."""
        group = self.parallel.loss_group
        return forward_loss(self.model, batch, self.loss_fn, num_targets, loss_group=group)

    # Running.

    def train(self) -> TrainSummary:
        """Train to the end of the schedule, or to a stop signal; final weights are written in any case."""
        return train_loop(self)

    def evaluate(self) -> dict[str, EvalMetrics]:
        """Measure every validation set; keys are ``val`` and the suffixes of ``validation_dataset_NAME``."""
        return {name: evaluate_loss(self, loader) for name, loader in self.eval_loaders.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model holds the averaged weights, where the run keeps some: to measure them."""
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.applied())
            yield

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """Within the block the model is what the run hands on: averaged, and without the rounding of QAT."""
        with self.averaged(), ExitStack() as stack:
            if self.built.qat is not None:
                stack.enter_context(self.built.qat.off())
            yield

    def generate_answers(self, rows: Sequence[Any], **keys: Any) -> list[Any]:
        """Greedy answers to rows of ``eval_rows``; keys are those of ``exact_match.generate_answers``."""
        from automodel_recipes.exact_match import generate_answers

        keys = {"device": self.device, "parallel": self.parallel, "poll": self.poll_stop, **keys}
        return generate_answers(self.unwrapped(), self.tokenizer, rows, **keys)

    def agreed_code(self) -> int:
        """What the ranks agree to do: `GO_ON`, `SAVE`, or stop by a signal, whose number it is. Every rank calls it."""
        mine = self.stop.code(self.run_dir.path) if self.stop or self.parallel.is_main else GO_ON
        return self.parallel.largest_over_ranks(mine)

    def poll_stop(self) -> None:
        """Called between batches of work that is not a training step; a request to save waits for the next step.

        Raises: StopAgreed: some rank received a stop signal.
        """
        code = self.parallel.largest_over_ranks(int(self.stop.signal_number or GO_ON))
        if code > SAVE:
            raise StopAgreed(code)

    @contextmanager
    def answering(self) -> Iterator[Any]:
        """Within the block, a model that takes whole rows and returns their logits, under every layout; every rank
        calls it alike.
        """
        model = self.unwrapped()
        with self.parallel.whole_sequences(model):
            pipeline = self.parallel.pipeline
            yield model if pipeline is None else ThroughPipeline(model, pipeline)

    def unwrapped(self) -> Any:
        """The model without data-parallel wrappers."""
        return self.parallel.unwrap(self.model)

    def close(self) -> None:
        """Wait for a save in the background; release the directory, files and the process group that were opened."""
        try:
            if hasattr(self, "checkpointer"):
                self.checkpointer.close()
        finally:
            if hasattr(self, "records"):
                self.profiler.close()
                self.records.close()
            if hasattr(self, "run_dir"):
                release_directory(self)
            if getattr(self, "opened_process_group", False):
                shutdown()
