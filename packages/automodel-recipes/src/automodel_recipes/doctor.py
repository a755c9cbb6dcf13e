"""What this machine has to train with: versions, devices, kernels, disk, and the hub if asked."""

import importlib.util
import os
import platform
import shutil
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from automodel_recipes.versions import OWN, installed_versions

_PACKAGES = (
    *OWN,
    "torch",
    "transformers",
    "peft",
    "datasets",
    "safetensors",
    "triton",
    "torchao",
    "bitsandbytes",
    "transformer-engine",
)
_CONNECT_TIMEOUT_S = 3.0

Facts = dict[str, dict[str, str]]


def examine(*, network: bool = False) -> Facts:
    """Facts by section, in the order to read them.

    Args:
        network: open one TCP connection to the hub's host; nothing is sent.
    """
    facts = {
        "version": {"python": f"{platform.python_version()} ({sys.executable})"} | _versions(),
        "device": _devices(),
        "kernel": _kernels(),
        "disk": _disk(),
    }
    return facts | {"network": _network()} if network else facts


def _versions() -> dict[str, str]:
    return dict.fromkeys(_PACKAGES, "not installed") | installed_versions(_PACKAGES)


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (
            f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}"
        )
    if not torch.cuda.is_available():
        found["cuda"] = "none: " + (
            "this torch is built without CUDA" if torch.version.cuda is None else "no GPU found"
        )
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _kernels() -> dict[str, str]:
    from automodel_kernels import doctor

    found = importlib.util.find_spec("flash_attn")
    attention = "ok" if found else "not installed: attention uses torch's scaled_dot_product_attention"
    return {**doctor(), "flash-attention": attention}


def _disk() -> dict[str, str]:
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return {"here": _free(Path.cwd()), "hub cache": f"{cache}: {_free(cache)}"}


def _free(path: Path) -> str:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(there)
    writable = "" if os.access(there, os.W_OK) else ", not writable"
    return f"{usage.free / 2**30:.0f} GiB free of {usage.total / 2**30:.0f}{writable}"


def _network() -> dict[str, str]:
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0", "false"):
        return {"hub": "not tried: HF_HUB_OFFLINE is set"}
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return {"hub": f"{endpoint.hostname} cannot be reached: {error}; local models and data work all the same"}
    return {"hub": f"{endpoint.hostname} answers"}
