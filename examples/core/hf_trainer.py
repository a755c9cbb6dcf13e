"""LoRA and the exactly normalised loss of automodel-core under transformers.Trainer.

Accumulation does not change the result: eight rows at once, or two at a time, end at the same weights.

python examples/core/hf_trainer.py OUTPUT_DIRECTORY
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from automodel_core.loss import MaskedCrossEntropy, hf_loss
from automodel_core.peft import PeftConfig, apply_lora, init_lora

output = sys.argv[1]
SHAPE = LlamaConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
torch.manual_seed(0)
ids = torch.randint(0, 128, (8, 16))
# Rows keep between 2 and 9 label tokens: a mean of means would weigh them wrongly.
rows = [{"input_ids": row, "labels": row.masked_fill(torch.arange(16) < 7 + i, -100)} for i, row in enumerate(ids)]


def train(batch_size: int) -> dict[str, torch.Tensor]:
    """The adapter after four steps of eight rows."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(SHAPE)
    apply_lora(model, PeftConfig(match_all_linear=True, dim=8, alpha=16))
    init_lora(model, seed=0)
    arguments = TrainingArguments(
        output,
        max_steps=4,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=8 // batch_size,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=rows, compute_loss_func=hf_loss(MaskedCrossEntropy())).train()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


whole, split = train(8), train(2)
moved = max(tensor.abs().max() for name, tensor in whole.items() if "lora_B" in name)
difference = max((whole[name] - split[name]).abs().max() for name in whole)
print(f"adapters moved by up to {moved:.1e}; 8 x 1 and 2 x 4 rows differ by {difference:.1e}")
