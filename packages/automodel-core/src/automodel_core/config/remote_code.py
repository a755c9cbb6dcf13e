"""Code that comes with a model: run only when the command line says so and the configuration pins the commit."""

import re
from pathlib import Path

from automodel_core.config.errors import Problem
from automodel_core.config.policy import Policy
from automodel_core.config.tree import Leaf, Table, join, walk

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FORBIDDEN_KEYS = ("auto_map", "_attn_implementation_internal", "custom_pipelines")


def remote_code_problems(root: Table, policy: Policy) -> list[Problem]:
    """Keys, at any depth, that would run code from a model repository without consent."""
    return [
        problem for path, tree in walk(root) if isinstance(tree, Table) for problem in _of_section(tree, path, policy)
    ]


def _of_section(table: Table, path: str, policy: Policy) -> list[Problem]:
    problems = []
    for key, entry in table.entries.items():
        if key in _FORBIDDEN_KEYS:
            message = "would choose code to run; a configuration may not, remove it"
            problems.append(Problem(entry.key_source, join(path, key), message))
    trust = table.entries.get("trust_remote_code")
    if trust is None or not isinstance(trust.value, Leaf) or trust.value.value in (False, None):
        return problems
    place, source = join(path, "trust_remote_code"), trust.key_source
    if not policy.trust_remote_code:
        message = "runs the repository's code; give --trust-remote-code on the command line as well, or remove it"
        problems.append(Problem(source, place, message))
    elif not _is_pinned(table):
        message = "needs `revision:` with the 40-digit commit that you have read, so that the code cannot change"
        problems.append(Problem(source, place, message))
    return problems


def _is_pinned(table: Table) -> bool:
    def text(key: str) -> str:
        entry = table.entries.get(key)
        return str(entry.value.value) if entry and isinstance(entry.value, Leaf) else ""

    is_local = (
        Path(text("pretrained_model_name_or_path") or "\0").is_dir() if text("pretrained_model_name_or_path") else False
    )
    return is_local or _COMMIT.fullmatch(text("revision")) is not None
