"""Tokenizer and embedding: do they belong together, and growing the latter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_PADDING_ROWS = 1024
_PADDING_SHARE = 0.05


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that can produce ids which the model cannot embed, or that is plainly another model's.

    An embedding that is padded beyond the tokenizer passes: published models leave up to 2 % of their rows unused.

    Raises: ValueError: it names both sizes.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    unused = rows - largest - 1
    if unused > max(_PADDING_ROWS, _PADDING_SHARE * rows):
        raise ValueError(
            f"a tokenizer with ids up to {largest} for an embedding of {rows} rows: {unused} rows would never be "
            "used, which is no padding but another model's tokenizer. Use the model's own."
        )
    if largest >= rows:
        raise ValueError(
            f"a tokenizer with ids up to {largest} for an embedding of {rows} rows: every id needs a row. Use "
            "the model's own tokenizer, and name the tokens to add to it (tokenizer.add_tokens in YAML, else "
            "extend_tokenizer and add_token_rows), or resize_vocabulary(model, tokenizer)."
        )


def resize_vocabulary(model: Any, tokenizer: Any, *, multiple: int = 1) -> nn.Embedding:
    """Give every token a row, for tokens that were added to the tokenizer; never removes rows.

    New rows of embedding and head are drawn around the mean of the old ones. Under LoRA, pass the ``PeftConfig``
    through `automodel_core.peft.train_added_tokens`, or the new rows stay untrained.

    Args:
        multiple: round the number of rows up to a multiple of this.

    Returns: the model's input embedding.
    Raises: ValueError: the tokenizer has fewer tokens than rows, so that there is nothing to add.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed <= rows:
        raise ValueError(
            f"resize_vocabulary with a tokenizer of {needed} ids and {rows} rows: there is nothing to add. Add "
            "tokens to the "
            "tokenizer first."
        )
    return model.resize_token_embeddings(needed, pad_to_multiple_of=multiple if multiple > 1 else None)


def extend_tokenizer(
    tokenizer: Any, *, add_tokens: Sequence[str] = (), add_special_tokens: Sequence[str] = ()
) -> list[int]:
    """Add tokens that a tokenizer does not know; their ids follow those that are there.

    Args:
        tokenizer: of transformers; it is changed.
        add_tokens: ordinary ones, such as words of a field, which would be cut into pieces.
        add_special_tokens: markers, such as ``<|tool|>``: left out where text is decoded without special tokens.

    Returns: their ids, those of ordinary tokens first.
    Raises: ValueError: one is blank, stands twice, is a token already, or is cut into others even so; names it.
    """
    from transformers import AddedToken

    wanted = [*add_tokens, *add_special_tokens]
    _check_new_tokens(wanted, tokenizer.get_vocab())
    if add_tokens:
        # As written: tokens that are normalised are looked for only in what the others leave.
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in add_tokens])
    if add_special_tokens:
        known = list(getattr(tokenizer, "extra_special_tokens", None) or [])
        # Named in full, since the keyword that says "extend" has another name in every release.
        tokenizer.add_special_tokens({"additional_special_tokens": [*known, *add_special_tokens]})
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(wanted)]
    _check_found(tokenizer, dict(zip(wanted, ids, strict=True)))
    return ids


def _check_new_tokens(wanted: Sequence[str], vocabulary: dict[str, int]) -> None:
    for place, token in enumerate(wanted):
        if not isinstance(token, str) or not token.strip():
            raise ValueError(f"tokens to add hold {token!r}: each is a text of its own. Remove it.")
        if token in wanted[:place]:
            raise ValueError(f"tokens to add name {token!r} twice: a token has one id. Remove one of them.")
        if token in vocabulary:
            raise ValueError(
                f"tokens to add name {token!r}, which the tokenizer knows as {vocabulary[token]}: there is nothing to "
                "add. Remove it."
            )


def _check_found(tokenizer: Any, added: dict[str, int]) -> None:
    for token, number in added.items():
        found = tokenizer(token, add_special_tokens=False)["input_ids"]
        if number not in found:
            raise ValueError(
                f"tokens to add name {token!r}, which the tokenizer cuts into {tokenizer.convert_ids_to_tokens(found)} "
                "even so: the model would never see it. Choose another, or set split_special_tokens: false."
            )


@torch.no_grad()
def add_token_rows(model: Any, ids: Sequence[int]) -> None:
    """Give tokens that `extend_tokenizer` added a row in the embedding and in the head, whether tied or not.

    The model grows only where it has no rows left: published models are padded. Each row starts at the mean of the
    older tokens' rows, so that a token is at first as likely as the average one (Hewitt, "Initializing new word
    embeddings for pretrained language models", 2021). Nothing is drawn, so every process that does it has the same.

    Args:
        model: of transformers, whole; on the meta device it grows and stays without values.
        ids: of the added tokens, which follow all others.

    Raises: ValueError: embedding or head is stored in codes.
    """
    first, needed = min(ids), max(ids) + 1
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for module in (embedding, head):
        for tensor in () if module is None else (module.weight, getattr(module, "bias", None)):
            if tensor is not None and tensor.device.type != "meta":
                _start_at_mean(tensor, list(ids), first)


def _start_at_mean(tensor: torch.Tensor, ids: list[int], first: int) -> None:
    if not tensor.is_floating_point():
        raise ValueError(
            f"added tokens for an embedding or head of {tensor.dtype}: codes hold no mean. Leave it out of the "
            "quantisation (llm_int8_skip_modules)."
        )
    tensor[ids] = tensor[:first].float().mean(0).to(tensor.dtype)
