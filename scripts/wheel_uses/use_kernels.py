"""The fused linear cross-entropy of automodel-kernels equals the plain one, gradient included; needs torch alone."""

import torch
from torch.nn.functional import cross_entropy

from automodel_kernels.ops import linear_cross_entropy

torch.manual_seed(0)
hidden, head = torch.randn(2, 8, 16, requires_grad=True), torch.randn(32, 16, requires_grad=True)
labels = torch.randint(0, 32, (2, 8))
labels[:, :3] = -100
fused = linear_cross_entropy(hidden, head, labels)
gradients = torch.autograd.grad(fused, (hidden, head))
plain = cross_entropy((hidden @ head.T).flatten(0, 1), labels.flatten())
torch.testing.assert_close(fused, plain)
torch.testing.assert_close(gradients, torch.autograd.grad(plain, (hidden, head)))
print(f"loss {fused.item():.3f}, gradients agree")
