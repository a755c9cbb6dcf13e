"""automodel-kernels on plain transformers models: three lines, the same numbers, and out again.

python examples/kernels/plain_model.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from automodel_kernels import patch_model_with_kernel_optimizations, unpatch

SHAPE = dict(  # noqa: C408 - keywords of a configuration
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)


def loss_and_gradients(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One forward and backward."""
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


for config_class, model_class in ((LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)):
    torch.manual_seed(0)
    model = model_class(config_class(**SHAPE))
    ids = torch.randint(0, 256, (2, 24))
    plain_loss, plain = loss_and_gradients(model, ids)

    report = patch_model_with_kernel_optimizations(model)
    print(report)

    loss, gradients = loss_and_gradients(model, ids)
    error = max(((gradients[n] - plain[n]).norm() / plain[n].norm()).item() for n in plain)
    unpatch(model)
    again, _ = loss_and_gradients(model, ids)
    print(
        f"{model_class.__name__}: loss {plain_loss:.6f} plain, {loss:.6f} patched, {again:.6f} unpatched; "
        f"largest relative difference of a gradient {error:.1e}"
    )
