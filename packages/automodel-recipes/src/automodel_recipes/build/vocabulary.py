"""Tokens that the YAML adds to the tokenizer, and the rows that the model gets for them."""

from collections.abc import Sequence
from typing import Any

from automodel_core.config import ConfigNode
from automodel_recipes.errors import UnusableInputError

KEYS = ("add_tokens", "add_special_tokens")
HOLDERS = ("tokenizer", "processor")
"""Sections that may add tokens: a processor holds the tokenizer of a vision-language model."""


def extended(tokenizer: Any, section: ConfigNode | None) -> Any:
    """The tokenizer with the section's tokens added.

    Raises: UnusableInputError: a token cannot be added; names it.
    """
    keys = {} if section is None else {key: section.get(key) for key in KEYS if section.get(key)}
    if keys:
        from automodel_core.models import extend_tokenizer

        try:
            extend_tokenizer(tokenizer, **keys)
        except ValueError as error:
            raise UnusableInputError(f"{' and '.join(keys)}: {error}") from error
    return tokenizer


def added_tokens(config: ConfigNode) -> list[str]:
    """Every token that a configuration adds, in the order of their ids."""
    lists = [config.get(f"{holder}.{key}") for holder in HOLDERS for key in KEYS]
    return [token for tokens in lists for token in tokens or ()]


def added_key(config: ConfigNode) -> str:
    """The key that adds tokens, for messages; the first of several."""
    return next(f"{holder}.{key}" for holder in HOLDERS for key in KEYS if config.get(f"{holder}.{key}"))


def added_ids(config: ConfigNode, tokenizer: Any) -> list[int]:
    """Ids of the added tokens; none where no tokenizer is there, as in a plan without data."""
    tokens = added_tokens(config)
    return (
        [int(i) for i in tokenizer.convert_tokens_to_ids(tokens)] if tokens and hasattr(tokenizer, "get_vocab") else []
    )


def grow(model: Any, ids: Sequence[int]) -> str:
    """Give the added tokens rows; say what was done."""
    from automodel_core.models import add_token_rows

    before = model.get_input_embeddings().weight.shape[0]
    add_token_rows(model, ids)
    after = model.get_input_embeddings().weight.shape[0]
    size = f"embedding of {before} rows grown to {after}" if after > before else f"embedding of {after} rows has room"
    return f"vocabulary: {len(ids)} tokens added (ids {min(ids)} to {max(ids)}), {size}; they start at the others' mean"


def with_trained_rows(model: Any, peft: Any, ids: Sequence[int]) -> Any:
    """The adapter's config, so that the added tokens' rows train beside it.

    Raises: UnusableInputError: the adapter is of a method that trains no rows of an embedding.
    """
    from automodel_core.peft import PeftConfig, train_added_tokens

    if not isinstance(peft, PeftConfig):
        raise UnusableInputError(
            f"added tokens under peft method {type(peft).__name__}: it trains no rows of the embedding, so they would "
            "stay as they start. Use _target_: lora, or train every parameter."
        )
    return train_added_tokens(model, peft, ids)


def refuse_frozen_rows(model: Any) -> None:
    """Raises: UnusableInputError: without an adapter, the embedding does not train."""
    if not model.get_input_embeddings().weight.requires_grad:
        raise UnusableInputError(
            "added tokens with a frozen embedding: their rows would stay as they start. Leave the embedding out of "
            "freeze_config, or train their rows alone with peft: {_target_: lora}."
        )
