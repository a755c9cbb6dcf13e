"""Datasets and collators under trainers that know nothing of this package."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_data import ChatDataset, PackedSequence, default_collater


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
