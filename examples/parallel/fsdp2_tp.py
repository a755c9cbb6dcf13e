"""FSDP2 x tensor parallelism of automodel-parallel on a plain transformers model, in a loop of one's own.

torchrun --nproc-per-node 4 examples/parallel/fsdp2_tp.py
"""

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_parallel import FSDP2Manager, init_distributed, shutdown

info = init_distributed()  # names the ranks that are missing, if any
context = FSDP2Manager(tp_size=2).setup(info)  # the other axis is derived: 4 processes = dp 2 x tp 2

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model, report = context.parallelize(LlamaForCausalLM(config))
optimizer = torch.optim.AdamW(context.unwrap(model).parameters(), lr=1e-3)
if context.is_main:
    print(report)

for step in range(5):
    rows = torch.arange(8 * 16).view(8, 16) % 128  # the global batch
    ids = rows.chunk(context.dp_size)[context.dp_rank].to(context.device)  # this data rank's part
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)  # shifted once, here
    batch = context.shard_sequence({"input_ids": ids, "shift_labels": labels})

    count = context.sum_over_data((labels != -100).sum())  # label tokens of the global batch
    shift_labels = batch.pop("shift_labels")
    with context.gradient_sync(model, enabled=True):  # False on all but the last micro-batch
        logits = model(**batch).logits
        loss = cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction="sum") / count
        loss.backward()
    norm = context.clip_grad_norm(model, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss = context.sum_over_loss_ranks(loss)
    if context.is_main:
        print(f"step {step}  loss {loss.item():.4f}  grad norm {norm.item():.3f}")
shutdown()
