"""How a run is started: what the command line decides and the configuration does not."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``train``. The defaults are those of the command line and of a notebook."""

    resume: str = "never"
    """``never`` refuses a directory that holds a run, ``auto`` goes on from its newest checkpoint; or a path."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; schedules keep the length that the YAML gives."""
    dry_run: bool = False
    """Build everything, write nothing but the run's record, train no step."""
    preflight: bool = False
    """Train on the longest micro-batch before the first step, to see that it fits; nothing of it stays."""
    nproc_per_node: int = 1
    """Processes on this machine."""
    quiet: bool = False
    """Print no screen; records are written all the same."""
