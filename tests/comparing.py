"""Comparisons that several invariants share."""

import torch


def weight_change_difference(
    before: dict[str, torch.Tensor], a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]
) -> float:
    """``||dW_a - dW_b|| / ||dW_a||`` over all tensors, after asserting that every tensor of ``a`` moved."""
    still = [name for name in a if torch.equal(a[name], before[name])]
    assert not still, f"not trained: {still}"
    difference = sum((a[name] - b[name]).double().square().sum() for name in a)
    change = sum((a[name] - before[name]).double().square().sum() for name in a)
    return float((difference / change).sqrt())
