"""Whether this device multiplies FP8 numbers."""

import torch

MIN_CAPABILITY = (8, 9)


def fp8_missing() -> str:
    """Return why there is no FP8 hardware here, or an empty string."""
    if not torch.cuda.is_available():
        return "no CUDA device (fp8 needs compute capability 8.9; emulate=True computes the same numbers slowly)"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} (fp8 needs 8.9 or newer, or emulate=True)"
    return ""
