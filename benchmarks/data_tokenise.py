"""Tokenise chats with an exact assistant mask: ours, TRL's preparation and the bare tokenizer, on the same rows.

    python benchmarks/data_tokenise.py --data train.jsonl [--tokenizer DIR] [--rows 8000] [--repeats 3] [--no-trl]

``--data`` holds ``question`` and ``answer``; two rows make a four-turn chat. Without ``--tokenizer`` a BPE vocabulary
of 16,384 is trained on the data. Prints one JSON object; ratios above 1 mean that ours is faster. ``ceiling`` renders
each chat once and makes an int32 array of its tokens, without a mask; ``tokenizer`` does the second half only, of texts
that are rendered already; ``unread`` is the ceiling without its arrays: the tokens stay inside the tokenizer.

Ours renders while a thread tokenises, the others have one thread: ratios of wall clock need an idle machine with two
cores. ``cpu`` ratios are of processor time, where that is no advantage and other programs disturb less. Set
``TOKENIZERS_PARALLELISM=false`` for one thread in the tokenizer itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MARKED_CHATML = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = MARKED_CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def chats(path: Path, num_rows: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    made = []
    for i in range(num_rows):
        pair = (rows[2 * i % len(rows)], rows[(2 * i + 1) % len(rows)])
        turns = [m for r in pair for m in (("user", r["question"]), ("assistant", r["answer"]))]
        made.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return made


def load_tokenizer(directory: str | None, rows: list[dict[str, Any]]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if directory:
        return AutoTokenizer.from_pretrained(directory)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=16_384, special_tokens=specials, initial_alphabet=alphabet)
    backend.train_from_iterator((m["content"] for row in rows for m in row["messages"]), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def trl_prepare(tokenizer: Any, rows: list[dict[str, Any]], num_proc: int | None) -> Callable[[], Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # TRL's own preparation, without the model that its trainer would need.
    stub = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=MARKED_CHATML, completion_only_loss=False, _is_vision_dataset=False
    )
    stub._signature_columns = ["input_ids", "labels", "seq_lengths", "completion_mask", "assistant_masks"]
    with tempfile.TemporaryDirectory() as directory:
        config = SFTConfig(
            output_dir=directory,
            assistant_only_loss=True,
            dataset_num_proc=num_proc,
            use_cpu=True,
            bf16=False,
            max_length=None,
        )
    stub.args = config

    def run() -> Any:
        dataset = Dataset.from_list(rows)
        return SFTTrainer._prepare_dataset(stub, dataset, tokenizer, config, False, None, "train")

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-proc", type=int, default=1)
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out, which need not be installed then")
    options = parser.parse_args()

    from automodel_data import ChatDataset
    from automodel_data.rows import to_conversation
    from automodel_data.templates import ChatTemplate

    rows = chats(options.data, options.rows)
    tokenizer = load_tokenizer(options.tokenizer, rows)
    tokenizer.chat_template = CHATML
    template, backend = ChatTemplate(tokenizer), tokenizer.backend_tokenizer
    conversations = [to_conversation(row, "messages") for row in rows]

    def render() -> list[str]:
        return [template.render(c, mask="all").text for c in conversations]

    def encode(texts: list[str]) -> Iterator[list[Any]]:
        for i in range(0, len(texts), 512):  # rows per call, as in ours
            yield backend.encode_batch_fast(texts[i : i + 512], add_special_tokens=False)

    def token_arrays(texts: list[str]) -> list[np.ndarray]:
        return [np.array(encoding.ids, dtype=np.int32) for batch in encode(texts) for encoding in batch]

    texts = render()
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: ChatDataset(rows, tokenizer, cache=False, num_proc=options.num_proc),
        "ceiling": lambda: token_arrays(render()),
        "tokenizer": lambda: token_arrays(texts),
        "unread": lambda: deque(encode(render()), maxlen=0),
    }
    if not options.no_trl:
        runs["trl"] = trl_prepare(tokenizer, rows, options.num_proc if options.num_proc > 1 else None)
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    ours, bare = ChatDataset(rows, tokenizer, cache=False), runs["ceiling"]()
    theirs = None if options.no_trl else runs["trl"]()
    for i in range(0, len(rows), 97):  # the same tokens and the same mask, or the comparison means nothing
        row = ours[i]
        assert row["input_ids"] == bare[i].tolist()
        assert theirs is None or row["input_ids"] == list(theirs[i]["input_ids"])
        assert theirs is None or row["labels"] == list(theirs[i]["labels"])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():  # interleaved, so that a busy machine slows all alike
            times[name].append(seconds(run))
    wall, cpu = (  # the best of the repeats: what other programs add is noise
        {name: min(pair[which] for pair in pairs) for name, pairs in times.items()} for which in (0, 1)
    )
    ratios = {
        f"ours_vs_{name}{suffix}": round(best[name] / best["ours"], 3)
        for suffix, best in (("", wall), ("_cpu", cpu))
        for name in runs
        if name != "ours"
        if not (suffix and options.num_proc > 1)  # child processes are not in our processor time
    }
    speeds = {name: round(ours.report.num_tokens / value) for name, value in wall.items()}
    figures = {"rows": len(rows), "tokens": ours.report.num_tokens, "num_proc": options.num_proc}
    print(json.dumps({**figures, "tokens_per_second": speeds, **ratios}))


if __name__ == "__main__":
    main()
