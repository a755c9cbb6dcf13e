"""Peak memory over many rows: stream them, or encode them into the cache and read every one back.

    python benchmarks/data_memory.py [--rows 1000000] [--mode stream|cache]

Rows are short chats written to a temporary file. Prints one JSON object; ``growth_mib`` is peak memory over that before
the data.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path


def small_tokenizer():
    """One token per byte: the least memory that a tokenizer can take."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--mode", choices=("stream", "cache"), default="stream")
    options = parser.parse_args()

    import automodel_data

    tokenizer = small_tokenizer()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AUTOMODEL_DATA_CACHE"] = directory
        path = Path(directory) / "rows.jsonl"
        with path.open("w") as file:
            for i in range(options.rows):
                turns = [
                    {"role": "user", "content": f"What is {i} plus {i % 7}?"},
                    {"role": "assistant", "content": str(i + i % 7)},
                ]
                file.write(json.dumps({"messages": turns}) + "\n")
        automodel_data.ChatDataset(
            [{"messages": turns}], tokenizer
        )  # imports and buffers are there before the measurement
        before, start = peak_mib(), time.perf_counter()
        if options.mode == "stream":
            num_tokens = sum(len(row["input_ids"]) for row in automodel_data.ChatIterableDataset(str(path), tokenizer))
        else:
            dataset = automodel_data.ChatDataset(str(path), tokenizer)
            num_tokens = sum(len(dataset[i]["input_ids"]) for i in range(0, len(dataset), 10)) * 10
        figures = {
            "mode": options.mode,
            "rows": options.rows,
            "file_mib": round(path.stat().st_size / 2**20, 1),
            "tokens": num_tokens,
            "peak_mib": round(peak_mib()),
            "growth_mib": round(peak_mib() - before),
            "seconds": round(time.perf_counter() - start, 1),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
