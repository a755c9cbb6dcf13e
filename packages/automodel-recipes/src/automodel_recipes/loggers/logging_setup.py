"""Python logging for a run: the one place that configures handlers."""

import logging
import os
import sys
import warnings


class _RankFilter(logging.Filter):
    """Lets rank 0 through, and warnings of every rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        return self.rank == 0 or record.levelno >= logging.WARNING


class _OnceFilter(logging.Filter):
    """Lets a message through the first time: some libraries warn of the same thing in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, int, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.lineno, record.getMessage())
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def setup_logging(logging_level: int | str = logging.INFO, *, rank: int | None = None) -> None:
    """Send log records to stderr, INFO from rank 0 alone and warnings from all ranks, each message once.

    Args:
        logging_level: threshold, a number or a name.
        rank: this process's rank; read from ``RANK`` when not given.

    Calling it again replaces the handler that it installed; handlers of others stay.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler = logging.StreamHandler()
    handler.set_name("automodel_recipes")
    handler.setFormatter(logging.Formatter(f"{prefix}%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_RankFilter(rank))
    handler.addFilter(_OnceFilter())
    root = logging.getLogger()
    for existing in [h for h in root.handlers if h.get_name() == "automodel_recipes"]:
        root.removeHandler(existing)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for package in ("core", "parallel", "kernels", "data", "ckpt", "recipes"):
        logging.getLogger(f"automodel_{package}").setLevel(logging_level)


def quiet_libraries() -> None:
    """Keep progress bars of other libraries to terminals, and warnings that concern nothing of the user silent."""
    # peft asks every model that it wraps; nothing that a user wrote or could change.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # Losses on hidden states take a view of them and write nothing in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        return
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
