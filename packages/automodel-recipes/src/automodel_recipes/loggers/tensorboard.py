"""TensorBoard event files beside the run."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode


class TensorBoardTracker:
    """Writes scalars; ``tensorboard --logdir`` shows them."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, exit_code: int) -> None:
        """Flush; TensorBoard knows no exit code."""
        self._writer.close()


def open_tensorboard(config: "ConfigNode", run: Path, *, say: Callable[[str, str], None]) -> TensorBoardTracker:
    """Open event files in ``log_dir``, by default ``RUN/tensorboard``, and write the masked configuration as text."""
    from torch.utils.tensorboard import SummaryWriter

    from automodel_core.config.dump import to_yaml

    directory = Path(config.get("tensorboard.log_dir") or run / "tensorboard")
    writer = SummaryWriter(str(directory), flush_secs=int(config.get("tensorboard.flush_secs", 30)))
    writer.add_text("config", "```yaml\n" + to_yaml(config.to_dict(raw=True)) + "```")
    say("curves", f"tensorboard --logdir {directory}")
    return TensorBoardTracker(writer)
