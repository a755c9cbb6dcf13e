"""Losses for a training loop: ``loss(logits, shift_labels, num_label_tokens)`` is a sum over the global label count."""

from automodel_kernels.loss.te_parallel_ce import TEParallelCrossEntropy
from automodel_kernels.loss.triton_ce import TritonCrossEntropy
from automodel_kernels.loss.triton_linear_ce import TritonLinearCrossEntropy

__all__ = ["TEParallelCrossEntropy", "TritonCrossEntropy", "TritonLinearCrossEntropy"]
