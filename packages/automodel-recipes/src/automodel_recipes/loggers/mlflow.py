"""MLflow: a server, or a store of files beside the run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_recipes.text_files import write_text

if TYPE_CHECKING:
    from automodel_core.config import ConfigNode

_MAX_PARAM_LENGTH = 500  # of MLflow's own stores


class MlflowTracker:
    """One MLflow run; a resumed run goes on with the same one."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values at a step."""
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def close(self, exit_code: int) -> None:
        """Mark the run as finished, killed by a signal, or failed."""
        status = "FINISHED" if exit_code == 0 else "KILLED" if exit_code > 128 else "FAILED"
        self._client.set_terminated(self._run_id, status=status)


def open_mlflow(config: "ConfigNode", run: Path, *, say: Callable[[str, str], None]) -> MlflowTracker:
    """Start or continue the run at ``tracking_uri``, ``MLFLOW_TRACKING_URI``, or in files under ``RUN/mlruns``."""
    import mlflow

    uri = config.get("mlflow.tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    uri = str(uri) if uri else (run / "mlruns").resolve().as_uri()
    if uri.startswith("file:"):
        # MLflow >= 3.7 refuses file stores unless this is set; they stay readable and need no database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=uri)
    identity = run / "mlflow-run-id"
    if identity.is_file():
        run_id = identity.read_text(encoding="utf-8").strip()
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = _create(client, config, run)
        write_text(identity, run_id + "\n")
    say("mlflow", f"{uri}, run {run_id}")
    return MlflowTracker(client, run_id)


def _create(client: Any, config: "ConfigNode", run: Path) -> str:
    name = str(config.get("mlflow.experiment_name") or "automodel")
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment is not None else client.create_experiment(name)
    tags = config.get("mlflow.tags")
    created = client.create_run(
        experiment_id,
        run_name=str(config.get("mlflow.run_name") or run.name),
        tags={key: str(value) for key, value in (tags.to_dict(raw=True) if tags is not None else {}).items()},
    )
    for path, value in flat(config.to_dict(raw=True)):
        client.log_param(created.info.run_id, path, str(value)[:_MAX_PARAM_LENGTH])
    return created.info.run_id


def flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested dicts as ``a.b`` -> value; lists are leaves."""
    if not isinstance(values, dict):
        return [(prefix, values)]
    return [leaf for key, value in values.items() for leaf in flat(value, f"{prefix}.{key}" if prefix else str(key))]
