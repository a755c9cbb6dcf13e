"""The rows of a configuration's dataset without its model: what ``data show`` and ``data check`` look at."""

import inspect
from itertools import islice
from typing import Any, get_args, get_type_hints

from automodel_core.config import ConfigNode
from automodel_recipes.build.call import build
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.options import TrainOptions
from automodel_recipes.run import configured_recipe

# Looking at data must not stop at the first bad rows: they are what one wants to see.
_TOLERANT = {"on_bad": "skip", "max_bad_fraction": 1.0}


def tolerant_overrides(config: ConfigNode, section: str) -> list[str]:
    """Overrides under which the dataset of ``section`` reports every bad row, where it has such settings."""
    keywords = _keywords(_dataset_section(config, section).target())
    return [f"{section}.{key}={value}" for key, value in _TOLERANT.items() if key in keywords]


class FirstRows(list[Any]):
    """The first rows of a stream, with its report of the rows read."""

    def __init__(self, stream: Any, num_rows: int) -> None:
        super().__init__(islice(stream, num_rows))
        self.report = getattr(stream, "report", None)


def open_rows(config: ConfigNode, section: str = "dataset", *, num_rows: int = 10_000) -> tuple[Any, Any]:
    """The dataset of a section as its recipe would build it, and the tokenizer; no weights are loaded.

    Of a stream, the first ``num_rows`` rows.

    Raises: UnusableInputError: no such section, no rows, or rows whose labels are not those of tokens.
    """
    node = _dataset_section(config, section)
    recipe: Any = configured_recipe(config)(config, TrainOptions(quiet=True))
    recipe.build_tokenizer()
    dataset = build(node, tokenizer=recipe.tokenizer, processor=recipe.processor)
    if recipe.processor is not None:
        from automodel_data.vlm.mixing import as_media_rows

        dataset = as_media_rows(dataset)
    rows = dataset if hasattr(dataset, "__len__") else FirstRows(dataset, num_rows)
    _check(rows, section, kind=type(dataset).__name__)
    return rows, recipe.tokenizer


def _dataset_section(config: ConfigNode, section: str) -> ConfigNode:
    known = [key for key in config if key == "dataset" or key.startswith("validation_dataset")]
    if section not in known:
        raise UnusableInputError(f"the configuration has no data section {section!r}. It has: {', '.join(known)}.")
    return config.get(section)


def _check(dataset: Any, section: str, *, kind: str) -> None:
    if not len(dataset):
        raise UnusableInputError(f"{section} has no rows. Check its path, split and filters.")
    row = dataset[0]
    if len(row.get("labels", ())) != len(row.get("input_ids", ())):
        raise UnusableInputError(
            f"rows of {section} ({kind}) do not have one label per token, so there is no mask to show. "
            "Use a dataset for language or vision-language models."
        )


def _keywords(target: Any) -> set[str]:
    """The keyword parameters of a class or function, those of ``**keys: Unpack[SomeTypedDict]`` among them."""
    function = target.__init__ if inspect.isclass(target) else target
    names = set(inspect.signature(function).parameters)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            for typed in get_args(get_type_hints(function).get(parameter.name)):
                names |= set(getattr(typed, "__annotations__", ()))
    return names
