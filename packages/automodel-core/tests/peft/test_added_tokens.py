"""A LoRA trains the rows of added tokens, and of all others none."""

import pytest
import torch
from core_families import build

from automodel_core.loss import MaskedCrossEntropy, forward_loss, shift_labels
from automodel_core.models import add_token_rows
from automodel_core.peft import PeftConfig, apply_lora, merge_lora, train_added_tokens

IDS = [97, 98]


def grown(*, tied):
    model = build("llama", tie_word_embeddings=tied)
    add_token_rows(model, IDS)
    return model


def config(**keys):
    return PeftConfig(**{"target_modules": ["q_proj"], "dim": 4, **keys})


EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@pytest.mark.parametrize(
    "tied, keys, expected",
    [
        (True, {}, {EMBEDDING: IDS}),
        (False, {}, {EMBEDDING: IDS, HEAD: IDS}),
        (False, {"modules_to_save": ["lm_head"]}, {EMBEDDING: IDS}),
        (False, {"modules_to_save": ["embed_tokens"]}, {HEAD: IDS}),
        (True, {"modules_to_save": ["embed_tokens", "lm_head"]}, {}),
        (True, {"trainable_token_indices": [3, 98]}, {EMBEDDING: [3, 98, 97]}),
        (False, {"trainable_token_indices": {"lm_head": [5]}}, {HEAD: [5, *IDS], EMBEDDING: IDS}),
        (
            True,
            {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [5]}},
            {EMBEDDING: [5, *IDS], HEAD: [5, *IDS]},
        ),
    ],
)
def test_rows_are_filled_in_beside_what_is_there(tied, keys, expected):
    given = config(**keys)
    model = grown(tied=tied)
    made = train_added_tokens(model, given, IDS)
    assert made.trainable_token_indices == expected
    assert given.trainable_token_indices == keys.get("trainable_token_indices", [])
    report = apply_lora(model, made)
    assert set(report.token_rows) == set(expected)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_exactly_the_new_rows_change(tied, batch):
    model = grown(tied=tied)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    apply_lora(model, train_added_tokens(model, config(), IDS))
    batch = batch | {"input_ids": batch["input_ids"].clone(), "labels": batch["labels"].clone()}
    batch["input_ids"][:2, 4] = batch["labels"][:2, 4] = torch.tensor(IDS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    forward_loss(model, shift_labels(batch), MaskedCrossEntropy(), 14).backward()
    optimizer.step()
    merge_lora(model, unload=True)
    changed = {
        name: (tensor != before[name]).any(-1).nonzero().flatten().tolist()
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed.pop("model.embed_tokens.weight") == IDS
    assert changed.pop("lm_head.weight") == IDS
    assert len(changed) == 2
    assert all("q_proj" in name for name in changed)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_an_adapter_on_the_head_is_refused(tied):
    with pytest.raises(ValueError, match=r"a LoRA on lm_head: .*exclude_modules: \[lm_head\]"):
        train_added_tokens(grown(tied=tied), config(target_modules=["q_proj", "lm_head"]), IDS)
    excluded = config(target_modules=["*_proj", "lm_head"], exclude_modules=["lm_head"])
    assert EMBEDDING in train_added_tokens(grown(tied=tied), excluded, IDS).trainable_token_indices
