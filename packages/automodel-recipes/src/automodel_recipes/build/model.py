"""The model side: base weights, freezing, LoRA, kernels, FP8, and the reports of what each edit did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from automodel_core.config import ConfigNode
from automodel_recipes.build.call import build, plain
from automodel_recipes.build.fp8 import apply_fp8_section
from automodel_recipes.build.quantization import quantized_loading
from automodel_recipes.build.training import apply_mixed_precision
from automodel_recipes.build.vocabulary import added_ids, grow, refuse_frozen_rows, with_trained_rows
from automodel_recipes.errors import UnusableInputError


@dataclass
class ModelBuild:
    """A model that is ready to be parallelised, and what was done to it."""

    model: torch.nn.Module
    peft: Any = None
    qat: Any = None
    reports: list[Any] = field(default_factory=list)
    fp8: Any = None
    """The ``FP8Config`` in force, if any: then a forward differs from the plain model's by rounding."""
    after_step: list[Callable[[torch.nn.Module], None]] = field(default_factory=list)
    """What has to be done to the parallel model after each optimizer step."""
    load: Callable[[torch.nn.Module], Any] | None = None
    """Fills a model on the meta device once it is spread over the ranks; None: it has its weights."""
    initialize: Callable[[torch.nn.Module], Any] | None = None
    """Then fills what no file holds."""
    num_parameters: int = 0
    """All parameters, tied ones counted once, quantised ones by the numbers that they stand for."""
    num_trainable: int = 0
    """Parameters that the optimizer will change."""
    adapter_config: dict[str, Any] | None = None
    """What ``adapter_config.json`` says, for a model that will be cut into stages and then knows only a part."""


def build_model(
    config: ConfigNode,
    *,
    seed: int,
    tokenizer: Any = None,
    device: torch.device | None = None,
    sharded: bool = False,
    num_stages: int = 1,
) -> ModelBuild:
    """Load or initialise the model of the ``model`` section and apply the edits that the YAML asks for, in order.

    Args:
        device: where a quantised base is loaded to; other models are moved by the parallel layout.
        sharded: ranks hold parts of the parameters: then weights are read into these parts where they can be.
        num_stages: pipeline stages that the model will be cut into.
    """
    torch.manual_seed(seed)
    built = _base_model(config, tokenizer=tokenizer, device=device, sharded=sharded, num_stages=num_stages)
    ids = added_ids(config, tokenizer)
    if ids:
        built.reports.append(grow(built.model, ids))
    _freeze(built, config)
    _apply_qat(built, config)
    _apply_lora(built, config, seed, ids)
    if ids and built.peft is None:
        refuse_frozen_rows(built.model)
    _prepare_vision(built)
    _apply_kernels(built, config)
    apply_fp8_section(built, config)
    _apply_transforms(built, config)
    apply_mixed_precision(config, built.model)
    _count(built, num_stages)
    return built


def _base_model(
    config: ConfigNode, *, tokenizer: Any, device: torch.device | None, sharded: bool, num_stages: int
) -> ModelBuild:
    from automodel_recipes.build.base_weights import build_on_meta, loader, why_whole

    reason = why_whole(config) if sharded else ""
    if reason is None:
        model, reason = build_on_meta(config.model, tokenizer=tokenizer)
        if model is not None:
            return ModelBuild(model, load=loader(model, whole_model=num_stages == 1))
    built = ModelBuild(build(config.model, quantized_loading(config, device), tokenizer=tokenizer))
    if reason:
        built.reports.append(f"base weights: whole on every rank before they are spread: {reason}")
    return built


def _count(built: ModelBuild, num_stages: int) -> None:
    from automodel_core.peft.base_weight import num_elements

    built.num_parameters = sum(map(num_elements, built.model.parameters()))
    built.num_trainable = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    if built.peft is not None and num_stages > 1:
        from automodel_core.peft import adapter_config

        built.adapter_config = adapter_config(built.model, built.peft)


def _freeze(built: ModelBuild, config: ConfigNode) -> None:
    section = config.get("freeze_config")
    if section is not None:
        from automodel_core.models import apply_freezing

        built.reports.append(apply_freezing(built.model, **plain(section)))


def _apply_qat(built: ModelBuild, config: ConfigNode) -> None:
    section = config.get("qat")
    if section is None:
        return
    from automodel_core.quantization import apply_qat

    tp_size = config.get("distributed.tp_size")
    if isinstance(tp_size, int) and tp_size > 1:
        raise UnusableInputError(
            f"qat with distributed.tp_size={tp_size}: groups of weights that share a scale would be cut. Set tp_size "
            "to 1 and use data ranks, or remove qat."
        )
    built.qat = apply_qat(built.model, **plain(section))
    built.reports.append(built.qat)


def _apply_lora(built: ModelBuild, config: ConfigNode, seed: int, added: Sequence[int]) -> None:
    section = config.get("peft")
    if section is None:
        return
    from automodel_core.peft import AdapterConfig, apply_lora, init_lora, load_adapter_state_dict

    built.peft, tensors = section.instantiate(), None
    if isinstance(built.peft, AdapterConfig):
        from automodel_ckpt import load_adapter

        tensors, saved = load_adapter(built.peft.path)
        built.peft = built.peft.peft_config(saved, built.model)
    if added:
        built.peft = with_trained_rows(built.model, built.peft, added)
    # What use_triton asks for is done with the other kernels: a model is patched once.
    built.reports.append(apply_lora(built.model, built.peft, triton_rule=lambda model: None))

    def initialize(model: Any) -> None:
        init_lora(model, seed)
        if tensors is not None:
            load_adapter_state_dict(model, tensors)

    if built.load is None:
        initialize(built.model)
    else:
        built.initialize = initialize


def refuse_other_tokenizer(model: Any, tokenizer: Any) -> None:
    """Look at the sizes of embedding and tokenizer before a row is tokenised.

    Raises: UnusableInputError: some id has no row, or so many rows have no id that it is another model's tokenizer.
    """
    from automodel_core.models import check_tokenizer

    if not hasattr(tokenizer, "get_vocab"):  # one of the user's own kind, or none while a run is only planned
        return
    try:
        check_tokenizer(model, tokenizer)
    except ValueError as error:
        raise UnusableInputError(f"tokenizer: {error}") from error


def _prepare_vision(built: ModelBuild) -> None:
    if getattr(getattr(built.model, "config", None), "vision_config", None) is None:
        return
    from automodel_recipes.vlm.repairs import see_whole_images
    from automodel_recipes.vlm.unreached import freeze_unreached

    for report in (see_whole_images(built.model), freeze_unreached(built.model)):
        if report is not None:
            built.reports.append(report)


def _apply_kernels(built: ModelBuild, config: ConfigNode) -> None:
    section = config.get("kernels")
    wants_lora = config.get("peft.use_triton", False)
    if section is None and not wants_lora:
        return
    from automodel_kernels import patch_model_with_kernel_optimizations
    from automodel_kernels.patch.rules import DEFAULT_OPS

    keys = plain(section)
    if wants_lora:
        ops = keys.get("ops", DEFAULT_OPS if section is not None else ())
        keys["ops"] = tuple(dict.fromkeys([*([ops] if isinstance(ops, str) else ops), "lora"]))
    built.reports.append(patch_model_with_kernel_optimizations(built.model, **keys))


def _apply_transforms(built: ModelBuild, config: ConfigNode) -> None:
    for section in config.get("transforms") or []:
        built.reports.append(build(section, model=built.model))
