"""The same configuration with models that are built from their dimensions, so that no weights are read."""

import os
from pathlib import Path
from typing import Any

from automodel_core.config import ConfigNode, config_from_dict
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.model_facts import find_facts, known_models

_MODELS = ("model", "teacher_model")
# Keys of from_pretrained that say where weights lie or how they are read, and nothing about the model's shape.
_ABOUT_WEIGHTS = (
    "_target_",
    "pretrained_model_name_or_path",
    "gguf_file",
    "revision",
    "token",
    "subfolder",
    "cache_dir",
    "local_files_only",
    "trust_remote_code",
    "materialize",
    "device_map",
    "low_cpu_mem_usage",
    "quantization_config",
)
_ABOUT_MODELS = ("dtype", "torch_dtype", "attn_implementation", "strict", "sdpa_method", "use_liger_kernel")


def without_weights(config: ConfigNode) -> ConfigNode:
    """The configuration with ``from_pretrained`` replaced by ``from_config`` in every model section.

    Dimensions come from the directory's ``config.json``, from the facts that ship for public models, or else from the
    hub.

    Raises: UnusableInputError: no dimensions are to be had for a model.
    """
    values = config.to_dict()
    for name in _MODELS:
        if name in values:
            values[name] = _from_dimensions(config, name, values[name])
    values.pop("quantization", None)  # of weights; see `saved_by_quantization`
    return config_from_dict(values, allow_targets=config.policy.allow_targets)


def _from_dimensions(config: ConfigNode, name: str, section: dict[str, Any]) -> dict[str, Any]:
    target = str(section.get("_target_", ""))
    if not target.endswith(".from_pretrained"):
        return section
    source = config.path(f"{name}.pretrained_model_name_or_path") or section["pretrained_model_name_or_path"]
    dimensions = model_dimensions(str(source), gguf_file=section.get("gguf_file"))
    kept = {key: value for key, value in section.items() if key in _ABOUT_MODELS}
    # from_pretrained takes fields of the config as keywords too, such as num_labels.
    fields = {key: value for key, value in section.items() if key not in (*_ABOUT_MODELS, *_ABOUT_WEIGHTS)}
    return {**kept, "_target_": _builder(target), "config": {**dimensions, **fields}}


def _builder(target: str) -> str:
    """Our own class for the model's task: transformers' auto classes take no dict."""
    for task in ("ImageTextToText", "SequenceClassification"):
        if task in target:
            return f"automodel_core.NeMoAutoModelFor{task}.from_config"
    return "automodel_core.NeMoAutoModelForCausalLM.from_config"


def model_dimensions(source: str, *, gguf_file: str | None = None) -> dict[str, Any]:
    """The fields of a model's config, ``model_type`` among them.

    Raises: UnusableInputError: neither a directory, nor known, nor on the hub.
    """
    from transformers import AutoConfig

    facts = None if Path(source).is_dir() else find_facts(source)
    if facts is not None:
        return facts
    keys = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        found = AutoConfig.from_pretrained(os.fspath(source), **keys)
    except (OSError, ValueError) as error:
        raise UnusableInputError(
            f"the dimensions of {source} are not known: it is no directory with a config.json, and the hub gave none "
            f"({' '.join(str(error).split())[:120]}). Give a directory, or one of: {', '.join(known_models()[:6])}, ..."
        ) from error
    fields = found.to_dict()
    # transformers writes the weights' quantisation and its own version here, which build no model.
    return {key: value for key, value in fields.items() if key not in ("quantization_config", "transformers_version")}
