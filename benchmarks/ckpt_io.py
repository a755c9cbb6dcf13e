"""Save, load, consolidate and background saving against the plain operations under them: JSON rows of ratios.

    python benchmarks/ckpt_io.py [--mib 256] [--runs 7] [--directory /dev/shm]

Interleaved runs on one machine; medians. Ratios above 1 mean that ours is faster.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

ROW = 1 << 22  # float32 elements of one tensor: 16 MiB


def build(mib):
    model = nn.Module()
    for index in range(mib // 16):
        model.register_parameter(f"w{index}", nn.Parameter(torch.randn(2048, ROW // 2048), requires_grad=False))
    return model


def raw_write(model, path):
    """What the disk takes: every tensor's bytes, one fsync."""
    with open(path, "wb", buffering=0) as file:
        for tensor in model.state_dict().values():
            data = memoryview(tensor.numpy()).cast("B")
            for low in range(0, len(data), 1 << 24):
                file.write(data[low : low + (1 << 24)])
        os.fsync(file.fileno())


def torch_save(model, path):
    torch.save(model.state_dict(), path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def torch_hf(model, path):
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(path=str(path), fqn_to_index_mapping=dict.fromkeys(model.state_dict(), 1))
    dcp.save(model.state_dict(), storage_writer=writer, no_dist=True)


def ours(model, path):
    from automodel_ckpt import save

    save(path, {"model": model}, step=1)


def page_cache_copy(model, path):
    """The least that a loader can do: read the file into the tensors' memory."""
    with open(path, "rb", buffering=0) as file:
        for tensor in model.state_dict().values():
            file.readinto(memoryview(tensor.numpy()).cast("B"))


def load_ours(model, path):
    from automodel_ckpt import load

    load(path, {"model": model})


def timed(function, *arguments):
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def save_row(model, folder, runs):
    writers = {"raw_write": raw_write, "torch_save": torch_save, "torch_hf_writer": torch_hf, "ours": ours}
    times = {name: [] for name in writers}
    for run in range(runs + 1):
        for name, writer in writers.items():
            path = folder / f"{name}-{run}"
            seconds = timed(writer, model, path)
            if run:  # the first round warms imports and the allocator
                times[name].append(seconds)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {f"vs_{name}": round(medians[name] / medians["ours"], 2) for name in writers if name != "ours"}
    return {"measure": "save", **ratios}


def load_row(model, folder, runs):
    raw_write(model, folder / "raw")
    ours(model, folder / "run")
    times = {"page_cache_copy": [], "ours": []}
    for run in range(runs + 1):
        copied, loaded = timed(page_cache_copy, model, folder / "raw"), timed(load_ours, model, folder / "run")
        if run:
            times["page_cache_copy"].append(copied)
            times["ours"].append(loaded)
    return {
        "measure": "load, every block hashed",
        "vs_page_cache_copy": round(statistics.median(times["page_cache_copy"]) / statistics.median(times["ours"]), 2),
    }


def memory_row(folder):
    """Peak memory of consolidation in a process of its own, against the same process doing nothing."""
    # ru_maxrss of a child starts at that of its parent; VmHWM does not.
    code = "import re, automodel_ckpt.hf.consolidate as c; import torch.distributed.tensor; {}; "
    code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    work = f"c.consolidate({str(folder / 'run')!r}, {str(folder / 'out')!r})"
    peaks = [
        int(subprocess.run([sys.executable, "-c", code.format(w)], capture_output=True, text=True, check=True).stdout)
        for w in ("pass", work)
    ]
    return {"measure": "consolidate", "extra_mib": round((peaks[1] - peaks[0]) / 1024, 1)}


def export_row(folder):
    """Peak memory of an export of the model in memory, cast to bfloat16, likewise."""
    code = "import re, torch, automodel_ckpt.hf.export as e; from torch import nn; model = nn.Module(); "
    code += "names = [model.register_parameter(f'w{{i}}', nn.Parameter(torch.zeros(2048, 2048))) for i in range({})]; "
    code += "[p.data.fill_(1) for p in model.parameters()]; import torch.distributed.tensor; {}; "
    code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    work = f"e.export_hf(model, {str(folder / 'exported')!r}, dtype=torch.bfloat16)"
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", code.format(12, w)], capture_output=True, text=True, check=True
            ).stdout
        )
        for w in ("pass", work)
    ]
    return {"measure": "export with a cast", "extra_mib": round((peaks[1] - peaks[0]) / 1024, 1)}


def async_row(model, folder, runs):
    from automodel_ckpt import AsyncSaver

    copies, stalls, late = [], [], []
    copy = {name: torch.empty_like(tensor) for name, tensor in model.state_dict().items()}
    with AsyncSaver(folder / "async") as saver:
        for step in range(1, runs + 2):
            copies.append(timed(lambda: [copy[name].copy_(t) for name, t in model.state_dict().items()]))
            saver.save({"model": model}, step=step)
            stalls.append(saver.stall_s)
            path = saver.wait()
            late.append(time.time() - max(file.stat().st_mtime for file in path.rglob("*.safetensors")))
    extra = statistics.median(stalls[1:]) - statistics.median(copies[1:])
    return {
        "measure": "background save",
        "stall_beyond_copy_ms": round(1000 * extra, 1),
        "published_after_last_byte_ms": round(1000 * statistics.median(late[1:]), 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--directory", default="/dev/shm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        folder, model = Path(name), build(options.mib)
        base = {"mib": options.mib, "runs": options.runs, "directory": options.directory}
        for row in (
            save_row(model, folder, options.runs),
            load_row(model, folder, options.runs),
            memory_row(folder),
            export_row(folder),
            async_row(model, folder, options.runs),
        ):
            print(json.dumps({**row, **base}), flush=True)
    print(
        json.dumps({"measure": "peak of this process", "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10})
    )


if __name__ == "__main__":
    main()
