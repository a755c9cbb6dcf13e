"""A bare PyTorch loop that survives being killed at any moment. Run it, kill it, run it again.

python examples/ckpt/bare_loop.py OUTPUT_DIRECTORY [STEPS]
"""

import sys

import torch

from automodel_ckpt import latest, load, save

root, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
train = {"step": 0, "rng": torch.get_rng_state()}
state = {"model": model, "optim": optimizer, "train": train}
if latest(root):
    load(root, state)
    torch.set_rng_state(train["rng"])
for step in range(train["step"] + 1, steps + 1):
    loss = model(torch.randn(32, 8)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    train.update(step=step, rng=torch.get_rng_state())
    save(root, state, step=step, metrics={"loss": loss.item()})
    print(f"step {step} loss {loss.item().hex()}", flush=True)
