"""A JSONL of chats through automodel-data: only answers carry labels, and the loader resumes where it stood."""

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from automodel_data import ChatDataset, build_dataloader, default_collater

characters = {chr(code): code - 29 for code in range(32, 127)} | {"\n": 98}
backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, **characters}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token="<pad>",
    eos_token="<eos>",
    chat_template="{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "chats.jsonl")
    turns = [("user", "one plus one?"), ("assistant", "two")]
    rows = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in turns]} for n in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = ChatDataset(str(file), tokenizer, seq_length=128)
    loader = build_dataloader(
        dataset, collate_fn=default_collater, global_batch_size=4, local_batch_size=2, dp_rank=0, dp_size=1, seed=0
    )
    first = next(iter(loader))
    state = loader.state_dict()
trained = [token for token in dataset[0]["labels"] if token != -100]
assert tokenizer.decode(trained).replace(" ", "").startswith("two0"), tokenizer.decode(trained)
assert first["input_ids"].shape[0] == 2
assert state
print(f"{len(dataset)} rows, {len(trained)} trained tokens in the first, loader state {state}")
