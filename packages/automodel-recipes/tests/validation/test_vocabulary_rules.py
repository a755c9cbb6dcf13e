"""Tokens to add are looked at before anything is loaded: they are new, and their rows train."""

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes.validation import validate

TINY = "pkg://automodel_recipes/assets/tiny_llama"


def problems(tokenizer, **sections):
    config = {
        "recipe": "LLMFinetuneRecipe",
        "model": {
            "_target_": "automodel_core.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": TINY,
        },
        "dataset": {"_target_": "chat", "path_or_dataset_id": "pkg://automodel_recipes/assets/orders/train.jsonl"},
        "tokenizer": tokenizer,
        **sections,
    }
    return [f"{problem.path}: {problem.message}" for problem in validate(config_from_dict(config)).problems]


def test_new_tokens_pass():
    assert problems({"add_tokens": ["flurbig"], "add_special_tokens": ["<|tool|>"]}) == []
    assert problems({"add_special_tokens": ["<|tool|>"]}, peft={"_target_": "lora"}) == []


@pytest.mark.parametrize(
    "tokenizer, told",
    [
        ({"add_tokens": ["new", " "]}, "tokenizer.add_tokens.1: ' ' is blank; a token is a text of its own"),
        ({"add_tokens": ["new", "new"]}, "tokenizer.add_tokens.1: 'new' stands at tokenizer.add_tokens.0 already"),
        (
            {"add_tokens": ["new"], "add_special_tokens": ["new"]},
            "tokenizer.add_special_tokens.0: 'new' stands at tokenizer.add_tokens.0 already",
        ),
        ({"add_tokens": ["<|user|>"]}, "tokenizer.add_tokens.0: '<|user|>' is a token already, with id 3"),
        ({"add_tokens": "new"}, 'tokenizer.add_tokens: "new" is not a list'),
        ({"add_tokens": [7]}, "tokenizer.add_tokens: [7] is not a list"),
        ({"add_token": ["new"]}, 'unknown key for `tokenizer`; did you mean "add_tokens"?'),
    ],
)
def test_what_cannot_be_added_is_told_at_its_place(tokenizer, told):
    (problem,) = problems(tokenizer)
    assert told in problem


def test_rows_that_would_not_train_are_told():
    tokenizer = {"add_tokens": ["new"]}
    (told,) = problems(tokenizer, freeze_config={"freeze_embeddings": True})
    assert told.startswith("freeze_config.freeze_embeddings: freezes the rows of added tokens as well")
    assert problems(tokenizer, freeze_config={"freeze_embeddings": True}, peft={"_target_": "lora"}) == []
    (told,) = problems(tokenizer, peft={"_target_": "peft.IA3Config"})
    assert told.startswith("tokenizer.add_tokens: needs peft._target_: lora, or no peft: 'peft.IA3Config'")
