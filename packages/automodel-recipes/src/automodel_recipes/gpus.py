"""Accelerators that plans and benchmarks know by name."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """What one accelerator offers, as its data sheet says."""

    name: str
    memory_gib: float
    """Memory as the driver reports it, in GiB; data sheets give it in powers of ten."""
    bf16_tflops: float
    """Dense bfloat16 matrix products, 10^12 operations a second. For cards without bfloat16: float16."""
    device_names: tuple[str, ...]
    """Words that ``torch.cuda.get_device_name`` holds, all of them."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 14.6, 65, ("T4",)),
        Gpu("v100-32", 31.7, 125, ("V100", "32GB")),
        Gpu("rtx3090", 23.7, 71, ("RTX 3090",)),
        Gpu("rtx4090", 23.6, 165, ("RTX 4090",)),
        Gpu("rtx5090", 31.4, 209, ("RTX 5090",)),
        Gpu("a10g", 22.1, 70, ("A10G",)),
        Gpu("l4", 22.0, 121, ("L4",)),
        Gpu("a40", 44.4, 150, ("A40",)),
        Gpu("a6000", 47.5, 155, ("RTX A6000",)),
        Gpu("l40s", 44.4, 362, ("L40S",)),
        Gpu("a100-40", 39.4, 312, ("A100", "40GB")),
        Gpu("a100-80", 79.2, 312, ("A100", "80GB")),
        Gpu("h100", 79.2, 989, ("H100",)),
        Gpu("h100-pcie", 79.2, 756, ("H100 PCIE",)),
        Gpu("h100-nvl", 93.1, 835, ("H100 NVL",)),
        Gpu("h200", 139.8, 989, ("H200",)),
        Gpu("b200", 178.4, 2250, ("B200",)),
        Gpu("mi300x", 191.9, 1307, ("MI300X",)),
    )
}


def find_gpu(name: str) -> Gpu:
    """The accelerator of that name; case and separators do not matter (``H100``, ``a100_80``).

    Raises: ValueError: unknown; lists the known ones.
    """
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    if key not in GPUS:
        raise ValueError(f"no GPU {name!r} is known: choose one of {', '.join(GPUS)}.")
    return GPUS[key]


def recognise_gpu(device_name: str) -> Gpu | None:
    """The accelerator behind ``torch.cuda.get_device_name``; None for one that is not listed."""
    words = re.split(r"[\s\-_/]+", device_name.upper())
    for gpu in sorted(GPUS.values(), key=lambda gpu: -sum(map(len, gpu.device_names))):
        if all(_within(part.upper(), device_name.upper(), words) for part in gpu.device_names):
            return gpu
    return None


def _within(part: str, name: str, words: list[str]) -> bool:
    """Whole words only, since ``A100`` is no ``A10``; a phrase of several words as it stands."""
    return part in name if " " in part else part in words
