"""Any other method of the ``peft`` library, applied by the library itself."""

from typing import Any

from torch import nn

from automodel_core.peft.apply import LoraReport
from automodel_core.peft.base_weight import num_elements


def apply_external(model: nn.Module, config: Any) -> LoraReport:
    """Inject a ``peft`` method into a model in place.

    The library wraps what it adapts, so here, and only here, base parameters get new names (``base_layer``).
    ``adapter_state_dict`` and ``adapter_config`` go through the library as well.

    Args:
        model: any model.
        config: an instance of any of ``peft``'s config classes.

    Raises: TypeError: it is none; ValueError: the method adapts the prompt and not modules, or matches nothing.
    """
    import peft

    if not isinstance(config, peft.PeftConfig):
        raise TypeError(
            f"apply_lora got a {type(config).__name__}: it takes automodel_core.peft.PeftConfig, or a config of "
            "the peft "
            "library. Build one of them."
        )
    if config.is_prompt_learning:
        raise ValueError(
            f"{config.peft_type.value} learns a prompt and adapts no module: it cannot be injected in place. "
            "Wrap the model with peft.get_peft_model in your own loop."
        )
    before = {name for name, _ in model.named_parameters()}
    model.requires_grad_(False)
    peft.inject_adapter_in_model(config, model)
    new = [(name, p) for name, p in model.named_parameters() if p.requires_grad and name not in before]
    modules = sorted({name.split(".base_layer.")[0] for name, _ in model.named_parameters() if ".base_layer." in name})
    total = sum(map(num_elements, model.parameters()))
    model.peft_config_in_place = config
    return LoraReport(tuple(modules), (), sum(p.numel() for _, p in new), total)
