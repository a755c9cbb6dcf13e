"""A plain Hugging Face model in a loop of one's own over automodel-parallel, one process: the loss falls."""

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_parallel import DDPManager, init_distributed, shutdown

context = DDPManager().setup(init_distributed(device="cpu"))
torch.manual_seed(0)
shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
model, report = context.parallelize(LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4)))
optimizer = torch.optim.AdamW(context.unwrap(model).parameters(), lr=1e-2)
ids = torch.randint(0, 64, (4, 16))
losses = []
for _ in range(5):
    with context.gradient_sync(model, enabled=True):
        logits = model(input_ids=ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
    context.clip_grad_norm(model, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
shutdown()
assert losses[-1] < losses[0], losses
print(f"{report}; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
