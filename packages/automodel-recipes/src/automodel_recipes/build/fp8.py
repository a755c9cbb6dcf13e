"""The ``fp8`` section: FP8 training of linear layers, or a frozen base in FP8 under LoRA."""

from typing import TYPE_CHECKING

from automodel_core.config import ConfigNode
from automodel_recipes.build.call import plain
from automodel_recipes.errors import UnusableInputError

if TYPE_CHECKING:
    from automodel_recipes.build.model import ModelBuild


def apply_fp8_section(built: "ModelBuild", config: ConfigNode) -> None:
    """Edit the model as the ``fp8`` section says, and keep its settings in ``built.fp8``.

    Without LoRA, linear layers compute in FP8 by torchao. With LoRA, the frozen weights under the adapters are stored
    in FP8, a scale for every row; torchao would drop the adapters.

    Raises: UnusableInputError: no torchao, no FP8 hardware, or no layer that fits; says what to change.
    """
    section = config.get("fp8")
    if section is None:
        return
    from automodel_kernels.fp8 import FP8Config, apply_fp8, quantize_frozen_base
    from automodel_kernels.fp8.convert import precompute_scales

    settings = FP8Config(**plain(section))
    if not settings.enabled:
        return
    try:
        if built.peft is not None:
            report = quantize_frozen_base(built.model, filter_fqns=tuple(settings.filter_fqns))
        else:
            report = apply_fp8(built.model, config=settings)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UnusableInputError(str(error)) from error
    built.reports.append(report)
    built.fp8 = settings
    if settings.precompute_float8_dynamic_scale_for_fsdp:
        built.after_step.append(precompute_scales)
