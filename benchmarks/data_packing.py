"""Pack 100,000 documents at 4096 tokens: ours against TRL's best-fit decreasing, on the same lengths in one run.

    python benchmarks/data_packing.py [--documents 100000] [--size 4096]

Prints one JSON object per length mix. TRL packs tables, so its time includes moving one byte per token. Ours is the
best of three, TRL's one run; ``cpu`` is processor time, which a busy machine disturbs less than wall clock.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from automodel_data.packing import pack_lengths


def lognormal(num: int, mean: float, size: int) -> np.ndarray:
    sigma = 0.8
    draws = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, num)
    return np.clip(draws, 1, size).astype(np.int64)


def clock() -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    return time.perf_counter(), time.process_time()


def trl_packs(lengths: np.ndarray, size: int) -> tuple[float, float, int]:
    """Wall-clock and processor seconds, and the number of packs."""
    import pyarrow as pa
    from datasets import Dataset
    from trl import pack_dataset

    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
    tokens = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(lengths.sum(), np.int8)))
    dataset = Dataset(pa.table({"input_ids": tokens}))
    wall, cpu = clock()
    packed = pack_dataset(
        dataset, size, strategy="bfd", map_kwargs={"batch_size": len(lengths), "keep_in_memory": True}
    )
    return clock()[0] - wall, clock()[1] - cpu, len(packed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=4096)
    options = parser.parse_args()
    for mean in (400, 1700):
        lengths = lognormal(options.documents, mean, options.size)
        figures: dict = {"mean": mean, "documents": options.documents, "size": options.size}
        for strategy in ("bfd", "window", "sequential"):
            times = []
            for _ in range(3):
                wall, cpu = clock()
                packs = pack_lengths(lengths, options.size, strategy=strategy)
                times.append((clock()[0] - wall, clock()[1] - cpu))
            figures[strategy] = {
                "utilisation": round(packs.utilisation(options.size), 5),
                "packs": len(packs),
                "seconds": round(min(wall for wall, _ in times), 4),
                "cpu_seconds": round(min(cpu for _, cpu in times), 4),
            }
        trl_seconds, trl_cpu_seconds, num_packs = trl_packs(lengths, options.size)
        utilisation = float(lengths.sum()) / (num_packs * options.size)
        figures["trl_bfd"] = {
            "utilisation": round(utilisation, 5),
            "packs": num_packs,
            "seconds": round(trl_seconds, 3),
            "cpu_seconds": round(trl_cpu_seconds, 3),
        }
        figures["speed_vs_trl"] = round(trl_seconds / figures["bfd"]["seconds"], 1)
        figures["speed_vs_trl_cpu"] = round(trl_cpu_seconds / figures["bfd"]["cpu_seconds"], 1)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
