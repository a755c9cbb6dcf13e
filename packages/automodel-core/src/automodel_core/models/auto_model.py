"""Load any Hugging Face model for fine-tuning, or initialise one from its config."""

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from automodel_core.models.attention import choose_attention, pin_sdpa
from automodel_core.models.dtype import resolve_dtype
from automodel_core.models.liger import apply_liger
from automodel_core.models.meta import WeightSource

logger = logging.getLogger(__name__)

# Parameters that a task adds to a pretrained base, so a checkpoint of the base need not have them.
_NEW_HEADS = ("score.", "classifier.")


class _NeMoAutoModel:
    """What the three classes share; a subclass names the transformers class that does the work."""

    _hf_class_name: str
    _may_add_head = False

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is not instantiated: call from_pretrained or from_config.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        torch_dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        strict: bool = False,
        sdpa_method: Sequence[str] | None = None,
        use_liger_kernel: bool = False,
        materialize: bool = True,
        **hf_kwargs: Any,
    ) -> Any:
        """Load a pretrained model.

        Args:
            pretrained_model_name_or_path: hub id or local directory; with ``gguf_file=NAME`` a GGUF file in it.
            dtype: of the weights: ``auto`` keeps the checkpoint's; a name or ``torch.dtype`` casts. Full fine-tuning
                wants float32 here, with bfloat16 for compute alone.
            torch_dtype: the same under transformers' older name; give one of the two.
            attn_implementation: what to start from; None is the fastest that this machine and model run. What cannot
                run here falls back (flash 3, flash 2, sdpa, eager), decided before any weight is read.
            strict: an attention that cannot run is an error instead.
            sdpa_method: SDPA backends that may be used, such as ``[FLASH_ATTENTION, MATH]``; None lets torch choose.
            use_liger_kernel: patch the instance with Liger's kernels (extra ``liger``).
            materialize: False builds the model on the meta device and leaves ``weight_source``, which says where the
                weights lie, on it: for loading straight into shards.
            hf_kwargs: passed on to transformers: ``revision``, ``trust_remote_code``, ``quantization_config``,
                ``num_labels`` and the like.

        Returns: the transformers model itself, in training mode.
        Raises: ValueError: parameters are missing in the checkpoint or it has some that the model lacks.
        """
        path = os.fspath(pretrained_model_name_or_path)
        dtype = resolve_dtype(dtype, torch_dtype)
        config, hf_kwargs = _load_config(path, hf_kwargs)
        attention = choose_attention(cls._model_class(config), config, attn_implementation, dtype, strict=strict)
        if materialize:
            hf_class = cls._auto_class(config)
            model, info = hf_class.from_pretrained(
                path, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True, **hf_kwargs
            )
            cls._check_loaded(path, info)
            _forget_gguf(model, hf_kwargs)
        else:
            model = cls._on_meta(config, dtype, attention, hf_kwargs)
            model.weight_source = WeightSource(path, hf_kwargs.get("revision"), hf_kwargs.get("gguf_file"))
        return _finish(model, sdpa_method, use_liger_kernel)

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        dtype: str | torch.dtype = "auto",
        torch_dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        strict: bool = False,
        sdpa_method: Sequence[str] | None = None,
        use_liger_kernel: bool = False,
        materialize: bool = True,
        **hf_kwargs: Any,
    ) -> Any:
        """Initialise a model with random weights from torch's global generator.

        Args:
            config: a transformers config, the path or hub id of one, or a dict with ``model_type``.
            dtype: of the weights; ``auto`` takes the config's, else float32.
            hf_kwargs: fields of the config that differ from it, such as ``num_labels``; others are passed on to
                transformers, such as ``trust_remote_code``.

        The other arguments are those of ``from_pretrained``.
        """
        dtype = resolve_dtype(dtype, torch_dtype)
        config, hf_kwargs = _changed(_as_config(config), hf_kwargs)
        if dtype == "auto":
            dtype = getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32
        attention = choose_attention(cls._model_class(config), config, attn_implementation, dtype, strict=strict)
        if materialize:
            hf_class = cls._auto_class(config)
            model = hf_class.from_config(config, dtype=dtype, attn_implementation=attention, **hf_kwargs)
        else:
            model = cls._on_meta(config, dtype, attention, hf_kwargs)
        return _finish(model, sdpa_method, use_liger_kernel)

    @classmethod
    def _model_class(cls, config: Any) -> Any:
        """The class that transformers will build; None for remote code, which decides for itself."""
        mapping = cls._auto_class(config)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
        if getattr(config, "auto_map", None):
            return None
        raise ValueError(
            f"a config of type {type(config).__name__} for {cls.__name__}: transformers has no "
            f"{cls._hf_class_name} for "
            "it. Choose the class for the model's task, or another model."
        )

    @classmethod
    def _auto_class(cls, config: Any) -> Any:
        """The transformers class that builds models of this config."""
        return _transformers(cls._hf_class_name)

    @classmethod
    def _on_meta(cls, config: Any, dtype: Any, attention: str | None, hf_kwargs: Mapping[str, Any]) -> Any:
        if dtype == "auto":
            dtype = config.dtype or torch.float32
        passed = {key: value for key, value in hf_kwargs.items() if key in ("trust_remote_code", "code_revision")}
        with torch.device("meta"):
            hf_class = cls._auto_class(config)
            return hf_class.from_config(config, dtype=dtype, attn_implementation=attention, **passed)

    @classmethod
    def _check_loaded(cls, path: str, info: Mapping[str, Any]) -> None:
        heads = _NEW_HEADS if cls._may_add_head else ()
        missing = sorted(k for k in info["missing_keys"] if not k.startswith(heads or ("\0",)))
        unexpected = [] if cls._may_add_head else sorted(info["unexpected_keys"])
        mismatched = sorted(str(key) for key in info.get("mismatched_keys", ()))
        said = [
            f"{len(keys)} {kind}: {', '.join(keys[:3])}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
            if keys
        ]
        if said:
            raise ValueError(
                f"the checkpoint in {path} does not fit its config ({'; '.join(said)}): every parameter must be there, "
                "once. Check config.json, the architecture's class, and that all shards were copied."
            )


class NeMoAutoModelForCausalLM(_NeMoAutoModel):
    """Any causal language model that transformers knows."""

    _hf_class_name = "AutoModelForCausalLM"


class NeMoAutoModelForImageTextToText(_NeMoAutoModel):
    """Any vision-language or multimodal model that transformers knows."""

    _hf_class_name = "AutoModelForImageTextToText"

    @classmethod
    def _auto_class(cls, config: Any) -> Any:
        """transformers lists models that take sounds as well (Phi-4-multimodal) as multimodal ones only."""
        import transformers

        named = super()._auto_class(config)
        wider = getattr(transformers, "AutoModelForMultimodalLM", None)
        is_known = type(config) in named._model_mapping or wider is None or type(config) not in wider._model_mapping
        return named if is_known else wider


class NeMoAutoModelForSequenceClassification(_NeMoAutoModel):
    """Any sequence classifier that transformers knows; from a language model, its head starts at random values."""

    _hf_class_name = "AutoModelForSequenceClassification"
    _may_add_head = True


def _transformers(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _load_config(path: str, hf_kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config, and what of the arguments is left for the model."""
    if os.path.sep in path and not os.path.exists(path) and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ValueError(f"{path} does not exist: give a directory with config.json or a hub id. Check the path.")
    auto = _transformers("AutoConfig")
    if hf_kwargs.get("gguf_file"):
        return auto.from_pretrained(path, **hf_kwargs), hf_kwargs
    config, rest = auto.from_pretrained(path, return_unused_kwargs=True, **hf_kwargs)
    # Both the config and the weights are read from the same place.
    shared = ("revision", "trust_remote_code", "token", "subfolder", "cache_dir", "local_files_only")
    return config, rest | {key: hf_kwargs[key] for key in shared if key in hf_kwargs}


def _changed(config: Any, hf_kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config with the fields that the arguments name, as transformers does on loading, and what is left."""
    fields = {key: value for key, value in hf_kwargs.items() if hasattr(config, key)}
    if fields:
        config = copy.deepcopy(config)
        for key, value in fields.items():
            setattr(config, key, value)
    return config, {key: value for key, value in hf_kwargs.items() if key not in fields}


def _as_config(config: Any) -> Any:
    auto = _transformers("AutoConfig")
    if isinstance(config, str | os.PathLike):
        return auto.from_pretrained(os.fspath(config))
    if isinstance(config, Mapping):
        if "model_type" not in config:
            raise ValueError(
                f"a config with keys {sorted(config)}: it needs model_type. Add it, such as model_type: llama."
            )
        return auto.for_model(**config)
    return config


def _forget_gguf(model: Any, hf_kwargs: Mapping[str, Any]) -> None:
    """A model read from GGUF is dequantised, but says that it is quantised, and transformers refuses to save it."""
    if not hf_kwargs.get("gguf_file"):
        return
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
        if name in owner.__dict__:
            delattr(owner, name)


def _finish(model: Any, sdpa_method: Sequence[str] | None, use_liger_kernel: bool) -> Any:
    if use_liger_kernel:
        apply_liger(model)
    if sdpa_method is not None:
        pin_sdpa(model, sdpa_method)
    return model.train()
