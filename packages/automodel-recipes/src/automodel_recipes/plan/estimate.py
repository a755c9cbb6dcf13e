"""Memory and communication of one rank, as numbers: what a trace comes to."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from automodel_recipes.gpus import GPUS, Gpu
from automodel_recipes.memory.ghost import Collective
from automodel_recipes.memory.live import Peak
from automodel_recipes.plan.trace import BUFFERS, GRADIENTS, OPTIMIZER, PARAMETERS, StepTrace

# What the driver, CUDA's context and the libraries' workspaces take beside tensors, and what fragmentation costs.
_CONTEXT_GIB = 1.0
_FRAGMENTATION = 0.05
GIB = 2**30


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over one axis in a step, on one rank."""

    op: str
    axis: str
    ranks: int
    calls: int
    sent_bytes: int
    """What this rank sends, by the ring algorithm."""


@dataclass(frozen=True)
class Estimate:
    """One rank's step."""

    trace: StepTrace
    lasting: Mapping[str, int]
    """Bytes that are there all the time: optimizer state, DDP's gradient buckets, quantised weights."""
    rows: int
    """Rows of a micro-batch."""
    tokens: int
    """Tokens of a row."""
    traffic: Sequence[Traffic] = field(default_factory=tuple)

    @property
    def static(self) -> Mapping[str, int]:
        """Bytes of parameters, gradients, optimizer state and buffers."""
        return self.trace.static

    def peak(self, rows: int | None = None) -> Peak:
        """The peak with micro-batches of ``rows``; those of the trace by default."""
        return self.trace.live.peak(scale=(rows or self.rows) / self.rows, lasting=self.lasting)

    def largest_micro_batch(self, limit_bytes: float, *, most: int = 4096) -> int:
        """The most rows whose peak stays below a limit; 0 when one row is too many."""
        if self.peak(1).total > limit_bytes:
            return 0
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.peak(middle).total <= limit_bytes else (low, middle - 1)
        return low


def make_estimate(trace: StepTrace, *, parallel: Any, rows: int, tokens: int, accumulates: bool) -> Estimate:
    """The estimate of a traced step; ``rows`` and ``tokens`` describe its micro-batch."""
    lasting = {OPTIMIZER: trace.static[OPTIMIZER]}
    collectives = list(trace.collectives)
    buckets = parallel.strategy == "ddp" and parallel.world_size > 1
    if accumulates or buckets:
        # They are there while the next micro-batch runs; DDP keeps them in its buckets from the start.
        lasting[GRADIENTS] = trace.static[GRADIENTS]
    if trace.quantized:
        lasting[PARAMETERS] = trace.static[PARAMETERS]
    if buckets:
        everyone = tuple(range(parallel.world_size))
        collectives.append(Collective("allreduce_ of gradient buckets", everyone, trace.static[GRADIENTS]))
    return Estimate(trace, lasting, rows, tokens, summarise(collectives, axes_of(parallel)))


def usable_bytes(gpu: Gpu) -> float:
    """What tensors may take on a card: all but the context's share and 5 % for fragmentation."""
    return (gpu.memory_gib - _CONTEXT_GIB) * (1 - _FRAGMENTATION) * GIB


def fits_on(peak: Peak) -> list[Gpu]:
    """The known accelerators whose memory is large enough, smallest first."""
    return sorted(
        (gpu for gpu in GPUS.values() if peak.total <= usable_bytes(gpu)), key=lambda gpu: (gpu.memory_gib, gpu.name)
    )


def axes_of(parallel: Any) -> dict[tuple[int, ...], str]:
    """Names of the mesh axes by the global ranks of this rank's group; larger meshes first, single axes win."""
    meshes = parallel.meshes
    if meshes is None:
        return {}
    named: dict[tuple[int, ...], str] = {}
    for mesh in (meshes.loss, meshes.dp, meshes.shard, meshes.axes):
        for axis in mesh.mesh_dim_names or ():
            group = mesh.get_group(axis)
            import torch.distributed as dist

            ranks = tuple(dist.get_process_group_ranks(group))
            if len(ranks) > 1:
                named[ranks] = axis
    return named


def summarise(collectives: Sequence[Collective], axes: Mapping[tuple[int, ...], str]) -> list[Traffic]:
    """Sum collectives by operator and axis, most bytes first."""
    sums: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(lambda: [0, 0])
    for one in collectives:
        if len(one.group) > 1:
            entry = sums[one.op, one.group]
            entry[0] += 1
            entry[1] += _sent(one)
    rows = [
        Traffic(op.strip("_").removesuffix("_"), axes.get(group, "world"), len(group), calls, sent)
        for (op, group), (calls, sent) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row.sent_bytes)


def _sent(one: Collective) -> int:
    """Bytes that a rank of a ring sends: all-reduce passes everything on twice, the others once."""
    n = len(one.group)
    if one.op == "send":
        return one.size
    rounds = 2 if one.op.startswith("allreduce") else 1
    return round(rounds * one.size * (n - 1) / n)


def static_rows(estimate: Estimate) -> list[tuple[str, int]]:
    """What stays from step to step, in the order in which it is printed."""
    return [(name, estimate.static[name]) for name in (PARAMETERS, GRADIENTS, OPTIMIZER, BUFFERS)]
