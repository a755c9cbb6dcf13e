"""How long a step will take, by the speed that `bench` measured."""

from dataclasses import dataclass
from pathlib import Path

from automodel_recipes.bench_compare import read_rows
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.gpus import Gpu
from automodel_recipes.plan.make import Plan


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, its tokens a second over all ranks, and where the speed comes from."""

    seconds: float
    tokens_per_s: float
    source: str


def step_time(plan: Plan, path: Path, *, gpu: Gpu | None) -> StepTime | None:
    """The time of a planned step at the operations a second of the fitting row in a file that `bench` wrote.

    Raises: UnusableInputError: no such file, or no row for this kind of device.
    """
    if plan.estimate is None:
        return None
    rows = [
        row
        for row in read_rows(path)
        if row.get("flops_per_s_per_device") and (gpu is None or row.get("gpu") == gpu.name)
    ]
    if not rows:
        wanted = f" for {gpu.name}" if gpu is not None else ""
        raise UnusableInputError(f"{path} holds no bench row{wanted}. Measure one: automodel-recipes bench CONFIG.")
    row = rows[-1]
    tokens = plan.estimate.rows * plan.estimate.tokens * plan.accumulation * plan.dp_size
    lengths = plan.estimate.rows * plan.estimate.tokens**2 * plan.accumulation * plan.dp_size
    flops = plan.estimate.trace.flops.of(tokens, lengths)
    speed = float(row["flops_per_s_per_device"])
    seconds = flops / (speed * plan.world_size)
    return StepTime(
        seconds,
        tokens / seconds,
        f"at {speed / 1e12:.3g} TFLOP/s a device, as {row.get('name')} measured on {row.get('device_name')}",
    )
