"""YAML configuration: positions of every value, overrides, ``_target_``; imports neither torch nor transformers."""

from automodel_core.config.errors import ConfigError, Problem
from automodel_core.config.load import config_from_dict, load_config
from automodel_core.config.node import ConfigNode
from automodel_core.config.policy import Policy
from automodel_core.config.secret import Secret
from automodel_core.config.targets import resolve_target
from automodel_core.config.tree import Source

__all__ = [
    "ConfigError",
    "ConfigNode",
    "Policy",
    "Problem",
    "Secret",
    "Source",
    "config_from_dict",
    "load_config",
    "resolve_target",
]
