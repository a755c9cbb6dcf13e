"""LoRA and an exactly normalised loss from automodel-core in a PyTorch loop of one's own; the adapter loads in peft.

python examples/core/bare_loop.py OUTPUT_DIRECTORY
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_core.loss import FusedLinearCrossEntropy, count_label_tokens, forward_loss, shift_labels
from automodel_core.optim import build_optimizer
from automodel_core.peft import PeftConfig, adapter_config, adapter_state_dict, apply_lora, init_lora

output = Path(sys.argv[1])
SHAPE = LlamaConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def base_model() -> LlamaForCausalLM:
    """The same random weights every time, as if they came from a hub."""
    torch.manual_seed(0)
    return LlamaForCausalLM(SHAPE)


model = base_model()
config = PeftConfig(target_modules=["*.q_proj", "*.v_proj"], dim=8, alpha=16)
print(apply_lora(model, config))
init_lora(model, seed=0)
optimizer = build_optimizer(model, torch.optim.AdamW, lr=1e-2)
loss_fn = FusedLinearCrossEntropy()

ids = torch.randint(0, 128, (8, 16))
labels = ids.masked_fill(torch.arange(16) < 8, -100)  # the first half is prompt
micro_batches = [{"input_ids": i, "labels": l} for i, l in zip(ids.split(2), labels.split(2), strict=True)]
for step in range(1, 11):
    batches = [shift_labels(batch) for batch in micro_batches]
    num_label_tokens = count_label_tokens(batches)
    losses = [forward_loss(model, batch, loss_fn, num_label_tokens) for batch in batches]
    torch.stack(losses).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step} loss {sum(float(loss.detach()) for loss in losses):.6f}")

output.mkdir(parents=True, exist_ok=True)
save_file(adapter_state_dict(model), output / "adapter_model.safetensors")
(output / "adapter_config.json").write_text(json.dumps(adapter_config(model, config)))
loaded = PeftModel.from_pretrained(base_model(), output).eval()
with torch.no_grad():
    difference = (loaded(input_ids=ids).logits - model.eval()(input_ids=ids).logits).abs().max()
print(f"largest difference of logits, peft on the plain model against the model in memory: {difference:.1e}")
