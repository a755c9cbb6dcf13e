"""LoRA and the fused loss of automodel-core in a bare loop: the loss falls and only the adapter trains."""

import torch

from automodel_core import NeMoAutoModelForCausalLM
from automodel_core.loss import FusedLinearCrossEntropy, count_label_tokens, forward_loss, shift_labels
from automodel_core.peft import PeftConfig, apply_lora

torch.manual_seed(0)
model = NeMoAutoModelForCausalLM.from_config(
    {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
    dtype=torch.float32,
)
apply_lora(model, PeftConfig(dim=8, alpha=16))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-2)
ids = torch.randint(0, 64, (4, 16))
batch = shift_labels({"input_ids": ids, "labels": ids})
losses = []
for _ in range(10):
    loss = forward_loss(model, batch, FusedLinearCrossEntropy(), count_label_tokens([batch]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
