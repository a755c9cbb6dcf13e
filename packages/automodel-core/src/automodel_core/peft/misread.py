"""Adapters that peft would load onto other parameters than those they were trained on."""

from collections.abc import Iterable

from torch import nn


def refuse_what_peft_misreads(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse adapters on these layers if no ``adapter_config.json`` can name them.

    On mixtures of experts that transformers stores fused, peft takes ``gate_proj``, ``up_proj`` and ``down_proj`` for
    the experts wherever they stand: an adapter of a dense layer or of a shared expert loads with a warning and other
    logits.

    Raises: ValueError: peft redirects some of the names.
    """
    redirected = sorted(set(names) - _names_that_stay(model, names))
    if redirected:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in redirected})
        raise ValueError(
            f"LoRA on {redirected[0]} and {len(redirected) - 1} more: in {type(model).__name__} peft reads the names "
            f"{', '.join(leaves)} as the fused experts, so the saved adapter would load with other logits. Target the "
            f"other layers, for example exclude_modules: [{', '.join(repr('*.' + leaf) for leaf in leaves)}], and the "
            "experts by target_parameters."
        )


def _names_that_stay(model: nn.Module, names: Iterable[str]) -> set[str]:
    """The names that are still target modules once peft has adapted them to the model."""
    try:
        from peft import LoraConfig
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a peft without the redirection
        return set(names)
    config = LoraConfig(target_modules=list(names))
    kept = set(config.target_modules)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # peft refuses a part of the fused names: it would refuse the adapter, too
        redirected = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
        return {name for name in kept if name.rsplit(".", 1)[-1] not in redirected}
    return set(config.target_modules)
