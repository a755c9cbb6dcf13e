"""The ops: each checks its inputs, chooses a backend, and is differentiable.

Everything here runs on any device; :mod:`automodel_kernels.reference` holds the plain PyTorch twins.
"""

from automodel_kernels.ops.cross_entropy import cross_entropy
from automodel_kernels.ops.glu import geglu, swiglu
from automodel_kernels.ops.linear_cross_entropy import linear_cross_entropy
from automodel_kernels.ops.lora import lora_linear
from automodel_kernels.ops.lora_mlp import lora_glu_mlp
from automodel_kernels.ops.rms_norm import rms_norm
from automodel_kernels.ops.rope import rope
from automodel_kernels.ops.vocab_parallel import vocab_parallel_cross_entropy

__all__ = [
    "cross_entropy",
    "geglu",
    "linear_cross_entropy",
    "lora_glu_mlp",
    "lora_linear",
    "rms_norm",
    "rope",
    "swiglu",
    "vocab_parallel_cross_entropy",
]
