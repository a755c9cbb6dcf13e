"""Recognise a form, rewrite it, and hold what comes out against our schema."""

import os
from dataclasses import dataclass

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.loader import parse_tree, read_text
from automodel_core.config.node import ConfigNode
from automodel_core.config.policy import Policy
from automodel_core.config.remote_code import remote_code_problems
from automodel_core.config.tree import Table, find
from automodel_recipes.migrate.dialects import AXOLOTL, HIERARCHICAL, TRL
from automodel_recipes.migrate.draft import Draft, Note, to_plain
from automodel_recipes.migrate.flat import translate
from automodel_recipes.migrate.nemo import from_nemo, is_nemo
from automodel_recipes.schema import DEFAULT_RECIPE, RECIPES
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.sections import check_sections

DIALECTS = {
    "nemo": from_nemo,
    "hierarchical": lambda source: translate(source, HIERARCHICAL),
    "trl": lambda source: translate(source, TRL),
    "axolotl": lambda source: translate(source, AXOLOTL),
    "native": lambda source: source,
}
_SIGNS = {
    "hierarchical": ("model.name", "training.learning_rate", "data.dataset_type"),
    "axolotl": ("base_model",),
    "trl": ("model_name_or_path",),
}


@dataclass(frozen=True)
class Migration:
    """A configuration in our form, and what became of every key that is not as it was."""

    dialect: str
    tree: Table
    notes: list[Note]

    @property
    def text(self) -> str:
        """The YAML; ``${NAME}`` stays as it was written."""
        from automodel_core.config.dump import to_yaml

        values = to_plain(self.tree)
        order = [name for name in RECIPES["VLMFinetuneRecipe"] | RECIPES[DEFAULT_RECIPE] if name in values]
        return to_yaml({name: values[name] for name in [*order, *(name for name in values if name not in order)]})

    @property
    def unknown(self) -> list[Note]:
        return [note for note in self.notes if note.outcome == "unknown"]


def migrate(path: str | os.PathLike[str], *, dialect: str | None = None) -> Migration:
    """Rewrite a configuration in our form.

    Args:
        path: a YAML file of NeMo Automodel (its first releases and current ones), TRL or axolotl, or in the
            hierarchical form (``model.name``, ``training.learning_rate``).
        dialect: one of ``DIALECTS``; None: recognised by its keys.

    Returns: the new tree, whose nodes know where they came from, and the notes in file order.
    Raises: ConfigError: the file is not YAML, not a mapping, or of no known form.
    """
    tree, problems = parse_tree(read_text(path), file=os.fspath(path), resolve=False)
    if problems or not isinstance(tree, Table):
        raise ConfigError(problems or [Problem(tree.source, "", "must be a mapping of sections")])
    name = dialect or recognise(tree)
    draft = DIALECTS[name](Draft.of(tree))
    notes = draft.notes + _against_schema(draft, {note.path for note in draft.notes if note.outcome == "unknown"})
    notes.sort(key=lambda note: (note.source.line, note.source.column))
    return Migration(name, draft.root, notes)


def as_native(config: ConfigNode) -> tuple[ConfigNode, list[Note]]:
    """A loaded configuration of NeMo Automodel or in the hierarchical form as ours; any other as it is.

    Positions stay those of the file, so that later problems point at what the user wrote.

    Returns: the configuration, and the notes on keys without effect.
    Raises: ConfigError: keys that have no counterpart.
    """
    tree = config.tree
    name = "nemo" if is_nemo(tree) else "hierarchical" if _has_signs(tree, "hierarchical") else None
    if name is None:
        return config, []
    draft = DIALECTS[name](Draft.of(tree))
    problems = [Problem(n.source, n.path, n.message) for n in draft.notes if n.outcome == "unknown"]
    # A key may have come to where it says more than it did: code of a model repository is looked for again.
    problems += remote_code_problems(draft.root, config.policy)
    if problems:
        raise ConfigError(problems)
    return ConfigNode(draft.root, policy=config.policy), [n for n in draft.notes if n.outcome == "without effect"]


def recognise(tree: Table) -> str:
    """The form of a configuration.

    Raises: ConfigError: of no known form; says what was looked for.
    """
    if is_nemo(tree):
        return "nemo"
    for name in _SIGNS:
        if _has_signs(tree, name):
            return name
    if find(tree, "model._target_") is not None:
        return "native"
    looked_for = ", ".join(sorted(sign for signs in _SIGNS.values() for sign in signs))
    message = f"no form is recognised: there is no nemo_automodel target and none of {looked_for}; name it by --dialect"
    raise ConfigError([Problem(tree.source, "", message)])


def _has_signs(tree: Table, name: str) -> bool:
    return any(find(tree, sign) is not None for sign in _SIGNS[name])


def _against_schema(draft: Draft, reported: set[str]) -> list[Note]:
    """What our schema refuses in the result, at the places where it was written."""
    report = Report(Policy())
    recipe = draft.get("recipe")
    check_sections(draft.root, recipe if recipe in RECIPES else DEFAULT_RECIPE, report)
    return [
        Note(problem.source, problem.path, "unknown", problem.message)
        for problem in report.problems
        if problem.path not in reported
    ]
