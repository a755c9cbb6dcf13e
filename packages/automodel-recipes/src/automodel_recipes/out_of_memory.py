"""When memory runs out: what it was used for, and which edits of the YAML would help, best first."""

from typing import TYPE_CHECKING, Any

from automodel_recipes.errors import OutOfMemory

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe

_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of device or host gave up."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def explain(r: "BaseRecipe", error: BaseException) -> OutOfMemory:
    """The error that the user reads: where it happened, the estimated breakdown, and ranked edits as notes."""
    step = r.step_scheduler.step + 1 if hasattr(r, "step_scheduler") else 0
    where = f"in step {step}" if step else "while the run was built"
    reason = " ".join(str(error).split())[:200]
    told = OutOfMemory(f"out of memory {where} on rank {r.parallel.rank} ({r.device}): {reason}")
    for line in _advice(r):
        told.add_note(line)
    return told


def _advice(r: "BaseRecipe") -> list[str]:
    from automodel_recipes.plan.edits import rank_edits_elsewhere

    memory: Any = getattr(r, "memory", None)
    if memory is None:
        return ["See what a step needs before it runs: automodel-recipes plan CONFIG"]
    lines = [memory.start_line()]
    if memory.estimate is None or not r.parallel.is_main:
        return lines
    lines.append("Edits that need less, by estimate, to be added to the command or written into the YAML:")
    return lines + rank_edits_elsewhere(r.config, world_size=r.parallel.world_size, longest_row=memory.estimate.tokens)
