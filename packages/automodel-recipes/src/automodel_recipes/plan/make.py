"""From a configuration and a number of ranks to a plan: problems as rows, or one rank's estimate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from automodel_core.config import ConfigNode
from automodel_core.training import StepScheduler
from automodel_recipes.batches import Batch
from automodel_recipes.build.call import plain
from automodel_recipes.build.data import global_batch_size
from automodel_recipes.build.parallel import build_parallel
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.gpus import Gpu
from automodel_recipes.plan.estimate import Estimate, make_estimate, usable_bytes
from automodel_recipes.plan.inputs import PlannedRows, planned_rows, text_micro_batches
from automodel_recipes.plan.rank import imagined_rank
from automodel_recipes.plan.trace import StepTrace, trace_step
from automodel_recipes.plan.vision import is_vision, vision_micro_batches


@dataclass
class Plan:
    """What is known of a run before it starts."""

    world_size: int
    layout: str = ""
    """Axes larger than 1."""
    rows: PlannedRows | None = None
    accumulation: int = 1
    """Micro-batches of a step on one rank."""
    dp_size: int = 1
    estimate: Estimate | None = None
    """None where a problem stood in the way."""
    problems: list[str] = field(default_factory=list)
    """What does not divide, or is refused."""
    proposed_rows: int | None = None
    """The largest micro-batch that fits on the GPU that was asked for."""


def make_plan(
    config: ConfigNode,
    *,
    world_size: int,
    gpu: Gpu | None = None,
    seq_length: int | None = None,
    longest_row: int | None = None,
) -> Plan:
    """Plan ``config`` on ``world_size`` ranks; see `planned_rows` for how long rows are taken to be.

    Raises: UnusableInputError: a model or row length that nothing says.
    """
    plan = Plan(world_size)
    plan.rows = planned_rows(config, seq_length=seq_length, longest_row=longest_row)
    with imagined_rank(world_size) as info:
        try:
            parallel = build_parallel(config, info)
        except (ValueError, UnusableInputError) as error:
            plan.problems.append(str(error))
            return plan
        plan.layout, plan.dp_size = parallel.dims.describe(), parallel.dp_size
        plan.problems += _batch_problems(config, plan)
        _estimate(plan, config, parallel, gpu)
    if plan.estimate is not None and parallel.dims.pp > 1:
        _take_larger_stage(plan, config, gpu)
    if plan.estimate is not None and gpu is not None:
        plan.proposed_rows = plan.estimate.largest_micro_batch(usable_bytes(gpu))
    return plan


def estimate_batches(
    config: ConfigNode,
    *,
    parallel: Any,
    micro_batches: Callable[[Any], Sequence[Batch]],
    tokenizer: Any = None,
    accumulates: bool,
    like_gpu: bool,
) -> Estimate:
    """The estimate of a step on given micro-batches; their rows and tokens are those of the first.

    Args:
        accumulates: whether a step has more micro-batches, which run beside the gradients of the first ones.

    Raises: ValueError: what the layout refuses.
    """
    shapes: list[tuple[int, int]] = []

    def build(r: Any) -> Sequence[Batch]:
        batches = micro_batches(r)
        shapes.append((int(batches[0]["input_ids"].shape[0]), int(batches[0]["input_ids"].shape[1])))
        return batches

    trace: StepTrace = trace_step(
        config, parallel=parallel, micro_batches=build, tokenizer=tokenizer, like_gpu=like_gpu
    )
    return make_estimate(trace, parallel=parallel, rows=shapes[0][0], tokens=shapes[0][1], accumulates=accumulates)


def _batch_problems(config: ConfigNode, plan: Plan) -> list[str]:
    keys = plain(config.get("step_scheduler"))
    for name in ("log_every_steps", "grad_acc_steps"):
        keys.pop(name, None)
    keys["global_batch_size"] = global_batch_size(config, plan.dp_size)
    keys.setdefault("local_batch_size", 1)
    try:
        scheduler = StepScheduler(dataloader=[None] * keys["global_batch_size"], dp_size=plan.dp_size, **keys)
    except (TypeError, ValueError) as error:
        return [str(error)]
    plan.accumulation = scheduler.grad_acc_steps
    return []


def _estimate(plan: Plan, config: ConfigNode, parallel: Any, gpu: Gpu | None) -> None:
    assert plan.rows is not None
    # A pipeline keeps several micro-batches in flight; elsewhere they come one after the other.
    number = min(plan.accumulation, 2 * parallel.dims.pp) if parallel.dims.pp > 1 else 1
    batches = vision_micro_batches if is_vision(config) else text_micro_batches
    try:
        plan.estimate = estimate_batches(
            config,
            parallel=parallel,
            micro_batches=batches(config, plan.rows, number=number),
            accumulates=plan.accumulation > 1,
            like_gpu=gpu is not None or config.get("device", "auto") != "cpu",
        )
    except (ValueError, RuntimeError) as error:
        if isinstance(error, UnusableInputError) and not str(error).startswith("distributed:"):
            raise  # a model whose dimensions are not known: there is nothing to plan
        plan.problems.append(" ".join(str(error).split()) or type(error).__name__)


def _take_larger_stage(plan: Plan, config: ConfigNode, gpu: Gpu | None) -> None:
    """The last stage of a pipeline holds the head and its logits; the first one most micro-batches in flight."""
    other = Plan(plan.world_size, rows=plan.rows, accumulation=plan.accumulation, dp_size=plan.dp_size)
    with imagined_rank(plan.world_size, rank=plan.world_size - 1) as info:
        _estimate(other, config, build_parallel(config, info), gpu)
    plan.problems += other.problems
    if other.estimate is not None and plan.estimate is not None:
        plan.estimate = max(plan.estimate, other.estimate, key=lambda estimate: estimate.peak().total)
