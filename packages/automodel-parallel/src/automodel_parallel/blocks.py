"""Find the repeated blocks of a model: the unit of sharding, checkpointing, compiling and pipeline splits."""

from __future__ import annotations

from torch import nn


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Outermost items of the model's module lists that hold parameters: decoder layers, vision layers.

    Module lists inside a block (experts, adapters) belong to the block.

    Returns: ``(name, module)`` in the order of registration, which is the order of execution in Hugging Face models.
    """
    blocks: list[tuple[str, nn.Module]] = []
    _collect(model, "", blocks)
    return blocks


def _collect(module: nn.Module, prefix: str, blocks: list[tuple[str, nn.Module]]) -> None:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.ModuleList):
            items = [(f"{path}.{i}", item) for i, item in enumerate(child)]
            blocks.extend((p, item) for p, item in items if any(True for _ in item.parameters()))
        else:
            _collect(child, path, blocks)
