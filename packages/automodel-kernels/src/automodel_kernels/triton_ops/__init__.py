"""Triton kernels, their torch.library operators and autograd. Imported at first use: this imports triton."""
