"""Weights & Biases: online with a key, offline without one."""

import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_core.config import Secret
from automodel_recipes.loggers.trackers import section_keys
from automodel_recipes.text_files import write_text

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode


class WandbTracker:
    """One W&B run; a resumed run goes on with the same one."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values at a step; several calls for one step are one row."""
        self._run.log(values, step=step)

    def close(self, exit_code: int) -> None:
        """Upload what is left (online) and mark the run as finished or failed."""
        self._run.finish(exit_code=exit_code)


def open_wandb(config: "ConfigNode", run: Path, *, say: Callable[[str, str], None]) -> WandbTracker:
    """Start or continue the run's W&B run; without an API key it is written offline, and that is said."""
    import wandb

    keys = section_keys(config, "wandb")
    key = keys.pop("api_key", None)
    mode: Any = keys.pop("mode", None) or os.environ.get("WANDB_MODE") or "online"
    if mode == "online" and not (key or has_key(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))):
        say("wandb", "no WANDB_API_KEY: running offline. Upload later with `wandb sync`.")
        mode = "offline"
    if key is not None and mode == "online":
        wandb.login(key=key.reveal() if isinstance(key, Secret) else key)
    identity = run / "wandb-id"
    known = identity.read_text(encoding="utf-8").strip() if identity.is_file() else None
    tracked = wandb.init(
        dir=keys.pop("save_dir", None) or str(run),
        mode=mode,
        id=keys.pop("id", None) or known,
        resume="allow",
        config=config.to_dict(raw=True),
        # Our own screen is the console; W&B must not start threads around it.
        settings=wandb.Settings(console="off", silent=True, disable_git=True),
        **keys,
    )
    write_text(identity, tracked.id + "\n")
    say("wandb", tracked.url if mode == "online" and tracked.url else f"{mode}, {Path(tracked.dir).parent}")
    return WandbTracker(tracked)


def has_key(url: str) -> bool:
    """Whether an API key is in the environment or, for this server, in ``~/.netrc``."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(url.partition("://")[2].partition("/")[0]) is not None
    except (OSError, netrc.NetrcParseError):
        return False
