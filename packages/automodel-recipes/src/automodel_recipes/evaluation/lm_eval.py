"""Hand a loaded model to EleutherAI's lm-evaluation-harness; nothing is fetched for tasks that lie in local files."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from automodel_recipes.errors import UnusableInputError


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """The harness's metrics of each task.

    Args:
        model, tokenizer: a language model in eval mode, on the device that it shall run on.
        tasks: names of tasks or groups.
        include_path: a directory with task YAML files of your own.
        batch_size: prompts at a time.
        limit: documents of each task; all by default.

    Raises: UnusableInputError: the harness is not installed, or does not know a task.
    """
    if find_spec("lm_eval") is None:
        raise UnusableInputError("--lm-eval needs lm-eval, which is not installed. Run pip install lm-eval.")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UnusableInputError(
            f"lm-eval knows no task {', '.join(unknown)}. List them by `lm-eval ls tasks`, or give the directory of "
            "your own by --lm-eval-path."
        )
    # Some families of transformers have no base class that the harness recognises; a causal head is all it needs.
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    found = simple_evaluate(model=wrapped, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0)
    return {task: dict(metrics) for task, metrics in found["results"].items()}
