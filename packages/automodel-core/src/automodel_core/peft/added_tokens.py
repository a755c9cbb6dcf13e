"""A LoRA that trains the rows of added tokens, and no other rows, beside its adapters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from automodel_core.peft.config import PeftConfig
from automodel_core.peft.matching import ModuleMatcher, matches
from automodel_core.peft.token_rows import named_rows


def train_added_tokens(model: Any, config: PeftConfig, ids: Sequence[int]) -> PeftConfig:
    """The same config with the rows of added tokens in ``trainable_token_indices``, beside those that are there.

    They are rows of the embedding, and of a head whose weight is its own. What ``modules_to_save`` covers trains whole
    and is left alone.

    Args:
        model: with a row for each token (`automodel_core.models.add_token_rows`), before ``apply_lora``.
        ids: of the added tokens.

    Raises: ValueError: the head is to have an adapter, which would change all of its rows.
    """
    rows = named_rows(model, config.trainable_token_indices)
    _refuse_adapted_head(model, config)
    for name in dict.fromkeys([*_owners(model), *rows]):
        if any(matches(pattern, name) for pattern in config.modules_to_save):
            continue
        there = rows.get(name, [])
        rows[name] = [*there, *(i for i in ids if i not in there)]
    return replace(config, trainable_token_indices=rows)


def _owners(model: Any) -> list[str]:
    """Names of the embedding and of a head of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    wanted = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return [name for name, module in model.named_modules() if any(module is other for other in wanted)]


def _refuse_adapted_head(model: Any, config: PeftConfig) -> None:
    head = model.get_output_embeddings()
    if head is None or (config.target_parameters and not config.target_modules):
        return
    found = [name for name, module in ModuleMatcher.from_config(config).select(model).items() if module is head]
    if found:
        raise ValueError(
            f"added tokens and a LoRA on {found[0]}: the adapter would change every row of the head, and a reader that "
            f"grows the base knows no new ones. Exclude it (exclude_modules: [{found[0]}])."
        )
