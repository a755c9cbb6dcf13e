"""Save, verify and load with automodel-ckpt: every tensor comes back, and the loop goes on from its step."""

import tempfile

import torch

from automodel_ckpt import latest, load, save, verify

torch.manual_seed(0)
model, other = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
optimizer, fresh = torch.optim.AdamW(model.parameters()), torch.optim.AdamW(other.parameters())
model(torch.randn(2, 8)).sum().backward()
optimizer.step()
with tempfile.TemporaryDirectory() as root:
    save(root, {"model": model, "optim": optimizer, "train": {"step": 7}}, step=7)
    verify(latest(root))
    train = {"step": 0}
    load(root, {"model": other, "optim": fresh, "train": train})
assert train["step"] == 7
torch.testing.assert_close(other.weight, model.weight, rtol=0, atol=0)
print("step 7 came back, bit for bit")
