"""Go on training an adapter that was saved in the ``peft`` library's format."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from automodel_core.peft.config import PeftConfig
from automodel_core.peft.hf_format import config_from_adapter


@dataclass
class AdapterConfig:
    """A saved adapter to go on from: rank, targets and scaling are its own; what acts on training alone may change."""

    path: str
    """Directory with ``adapter_config.json`` and ``adapter_model.safetensors``."""
    dropout: float | None = None
    """None: as it was saved."""
    lora_dtype: Any = None
    """See ``PeftConfig``."""
    use_triton: bool = False
    """See ``PeftConfig``."""

    def peft_config(self, adapter_config: Mapping[str, Any], model: nn.Module) -> PeftConfig:
        """What ``apply_lora`` takes to make room for the adapter; ``load_adapter_state_dict`` then fills it.

        Args:
            adapter_config: the content of ``adapter_config.json``.
            model: the base model, maybe on the meta device.

        Raises: ValueError: no LoRA, or one that ``PeftConfig`` has no word for.
        """
        saved = config_from_adapter(adapter_config, model=model)
        dropout = saved.dropout if self.dropout is None else self.dropout
        return replace(saved, dropout=dropout, lora_dtype=self.lora_dtype, use_triton=self.use_triton)
