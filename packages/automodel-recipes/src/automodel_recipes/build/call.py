"""Hand runtime objects to whatever a section names, where it takes them."""

import inspect
from collections.abc import Mapping
from typing import Any

from automodel_core.config import ConfigNode


def accepted(target: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """The offered keyword arguments that ``target`` takes by name.

    ``**kwargs`` does not count as taking one: a tunnel may swallow what it does not know.
    """
    parameters = inspect.signature(target).parameters
    return {name: value for name, value in offered.items() if name in parameters}


def build(node: ConfigNode, given: Mapping[str, Any] | None = None, /, **offered: Any) -> Any:
    """Instantiate a ``_target_`` section with those runtime objects that its target takes by name.

    A key that stands in the YAML wins over the offered object. Nested targets, such as the sources of a mixture, are
    offered the same.

    Args:
        node: the section.
        given: keyword arguments that the target gets in any case, through ``**kwargs`` too.
        offered: objects for targets that want them.
    """
    runtime = {name: value for name, value in accepted(node.target(), offered).items() if name not in node}
    return node.instantiate(offered, **runtime, **(given or {}))


def plain(node: Any) -> dict[str, Any]:
    """A section without ``_target_`` as keyword arguments; an absent one is empty."""
    return {} if node is None else node.to_dict()
