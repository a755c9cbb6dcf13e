"""Datasets and collators under trainers that know nothing of this package."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_data import (
    ChatDataset,
    ChatIterableDataset,
    PackedSequence,
    build_dataloader,
    default_collater,
    use_loader,
)
from automodel_data.errors import DataError


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), use_cache=False, **sizes))


@pytest.fixture
def dataset(tokenizer):
    turns = [
        [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}. " * (1 + i % 3)}]
        for i in range(8)
    ]
    return ChatDataset([{"messages": t} for t in turns], tokenizer)


def logged_losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def mean_loss(model, batches) -> float:
    """Cross-entropy over all label tokens of the batches, by hand."""
    total, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize("packed", [False, True])
def test_hugging_face_trainer(packed, model, dataset, tmp_path):
    pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    expected = mean_loss(model, [default_collater([dataset[i]]) for i in range(8)])
    rows = PackedSequence(dataset, packed_sequence_size=128).pack() if packed else dataset
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        remove_unused_columns=False,
        per_device_train_batch_size=len(rows),
        max_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=default_collater)
    losses = logged_losses(trainer)
    assert losses[0] == pytest.approx(expected, rel=1e-3)
    assert losses[1] < losses[0]


def test_plain_dataloader(dataset):
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=default_collater)
    assert [len(batch["input_ids"]) for batch in loader] == [3, 3, 2]


@pytest.mark.more
def test_trl_trains_on_our_tokens_as_they_are(model, dataset, tokenizer, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    expected = mean_loss(model, [default_collater([dataset[i]]) for i in range(8)])
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        per_device_train_batch_size=8,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset.hf_dataset(),
        data_collator=default_collater,
        processing_class=tokenizer,
    )
    assert logged_losses(trainer)[0] == pytest.approx(expected, rel=1e-3)


N = 29  # windows of 8, 8, 8, 5


@pytest.fixture
def rows(tokenizer):
    chats = [{"prompt": f"What is {i}?", "completion": f"It is {i}. " * (1 + i % 3)} for i in range(N)]
    return ChatDataset(chats, tokenizer)


class Seen:
    """A collate function that remembers the sample ids of its batches."""

    def __init__(self):
        self.ids = []

    def __call__(self, rows):
        batch = default_collater(rows)
        self.ids.append([i for i in batch["sample_ids"].tolist() if i >= 0])
        return batch


def windows_of(dataset, **sizes) -> list[list[int]]:
    """Sample ids of the global batches of two epochs."""
    loader = build_dataloader(dataset, collate_fn=default_collater, seed=3, **{**sizes, "local_batch_size": 8})
    return [[i for i in batch["sample_ids"].tolist() if i >= 0] for _ in range(2) for batch in loader]


def trained(kind, model, dataset, tokenizer, directory, *, local=4, stop=None, resume=False):
    """Sample ids of the micro-batches, losses of the steps and weights of one run; a copy of the model is trained."""
    import copy

    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stop:
                control.should_training_stop = control.should_save = True

    common = {
        "output_dir": str(directory),
        "per_device_train_batch_size": local,
        "gradient_accumulation_steps": 8 // local,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    seen, model = Seen(), copy.deepcopy(model)
    loader = build_dataloader(dataset, collate_fn=seen, global_batch_size=8, local_batch_size=local, seed=3)
    if kind == "trl":
        import trl

        arguments = trl.SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, bf16=False, **common)
        whole = dataset.hf_dataset()
        trainer = trl.SFTTrainer(
            model=model, args=arguments, train_dataset=whole, processing_class=tokenizer, callbacks=[Stop()]
        )
    else:
        from transformers import Trainer, TrainingArguments

        trainer = Trainer(model=model, args=TrainingArguments(**common), train_dataset=dataset, callbacks=[Stop()])
    use_loader(trainer, loader)
    trainer.train(resume_from_checkpoint=resume or None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return seen.ids, losses, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["transformers", pytest.param("trl", marks=pytest.mark.more)])
@pytest.mark.parametrize("stop", [2, pytest.param(4, marks=pytest.mark.more), 5])
def test_a_trainer_keeps_our_order_and_resumes_in_it(kind, stop, model, rows, tokenizer, tmp_path):
    pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")
    if kind == "trl":
        pytest.importorskip("trl", reason="trl is not installed")
    ids, losses, weights = trained(kind, model, rows, tokenizer, tmp_path / "whole")
    expected = windows_of(rows, global_batch_size=8)
    assert [i for batch in ids for i in batch] == [i for window in expected for i in window]
    assert len(losses) == 8
    trained(kind, model, rows, tokenizer, tmp_path / "parts", stop=stop)
    # The other half on micro-batches of another size: the same steps, since a step is a window.
    for local in (4, 8):
        again, resumed, last = trained(
            kind, model, rows, tokenizer, tmp_path / "parts", local=local, stop=99, resume=True
        )
        assert [i for batch in again for i in batch] == [i for window in expected[stop:] for i in window]
        assert resumed == pytest.approx(losses, abs=0.0 if local == 4 else 1e-4)
        if local == 4:
            assert all(torch.equal(last[name], weight) for name, weight in weights.items())


def test_packed_rows_under_a_trainer(model, rows, tokenizer, tmp_path):
    pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")
    packed = PackedSequence(rows, packed_sequence_size=128).pack()
    ids, losses, _ = trained("transformers", model, packed, tokenizer, tmp_path)
    assert sorted(i for batch in ids for i in batch) == sorted([*range(N), *range(N)])
    assert losses[-1] < losses[0]


def test_other_sizes_than_the_trainers_are_refused(model, rows, tokenizer, tmp_path):
    pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to=[])
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    for sizes, message in [
        ({"local_batch_size": 2}, "per_device_train_batch_size is 4, but the loader's local_batch_size is 2"),
        ({"local_batch_size": 4}, r"gradient_accumulation_steps is 1, but the loader's global.* is 2"),
        ({"local_batch_size": 4, "dp_size": 2}, "world size is 1, but the loader's dp_size is 2"),
    ]:
        loader = build_dataloader(rows, collate_fn=default_collater, global_batch_size=8, **sizes)
        with pytest.raises(DataError, match=message):
            use_loader(trainer, loader)
    stream = ChatIterableDataset([{"prompt": "a", "completion": "b"}], tokenizer)
    loader = build_dataloader(stream, collate_fn=default_collater, global_batch_size=4, local_batch_size=4)
    with pytest.raises(DataError, match="map-style dataset, not StreamLoader"):
        use_loader(trainer, loader)
