"""Values back to YAML that :func:`load_config` reads as the same values."""

from typing import Any

import yaml

from automodel_core.config.scalars import parse_plain
from automodel_core.config.secret import Secret


class Quoted(str):
    """Text to be written in quotes, so that a ``${NAME}`` in it stays text whatever the variable holds."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read as a number; lists and mappings one item a line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML follows YAML 1.1, where 1e-4 is text and needs no quotes; for our reader it is a number.
    ambiguous = isinstance(text, Quoted) or not isinstance(parse_plain(str(text)), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="'" if ambiguous else None)


for _kind in (str, Secret, Quoted):
    _Dumper.add_representer(_kind, _represent_text)


def to_yaml(values: dict[str, Any]) -> str:
    """Plain dicts, lists and scalars as YAML, in their order; secrets as ``***``."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
