"""What this machine can do: the ceilings that every time is held against."""

import time
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """Measured, not quoted."""

    device: str
    copy_bytes_per_s: float
    """Read plus written bytes of a large copy."""
    flops: dict[str, float]
    """Matrix multiplication of random numbers, FLOP/s by dtype."""

    def floor_ms(self, flops: float, num_bytes: float, dtype: str) -> float:
        """The least time of an op with so much work."""
        return 1e3 * max(flops / self.flops[dtype], num_bytes / self.copy_bytes_per_s)

    def to_dict(self) -> dict:
        """For a JSON file."""
        return asdict(self)


def measure_ceilings(device: torch.device, dtypes: list[torch.dtype]) -> Ceilings:
    """Measure copy bandwidth and matrix multiplication on a device; a second or two."""
    cuda = device.type == "cuda"
    source = torch.randn(2**28 if cuda else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    copied = 2 * source.numel() * source.element_size() / seconds
    flops = {_name(dtype): _matmul(device, dtype, 8192 if cuda else 1024) for dtype in dtypes}
    name = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    return Ceilings(name, copied, flops)


def _matmul(device: torch.device, dtype: torch.dtype, size: int) -> float:
    if device.type == "cpu" and dtype != torch.float32:
        size = 128  # emulated, a hundredth of the speed
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b, device)


def _best(function, device: torch.device, repeats: int = 8) -> float:
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
