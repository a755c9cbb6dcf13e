"""A model edit: the output head starts at zero, so that training begins at uniform predictions."""

import torch
from torch import nn


@torch.no_grad()
def zero_init_head(model: nn.Module) -> str:
    """Zero the output embeddings in place; returns the report.

    Raises: ValueError: the model has no output embeddings.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"zero_init_head: {type(model).__name__} has no output embeddings. Remove the transform.")
    head.weight.zero_()
    return f"zero_init_head: {tuple(head.weight.shape)} set to 0"
