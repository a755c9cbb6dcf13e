"""Tokenizer and embedding: do they belong together, and growing the latter."""

from typing import Any

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
            "the model's "
            "own tokenizer, or resize_vocabulary(model, tokenizer)."
        )


def resize_vocabulary(model: Any, tokenizer: Any, *, multiple: int = 1) -> nn.Embedding:
    """Give every token a row, for tokens that were added to the tokenizer; never removes rows.

    New rows of embedding and head are drawn around the mean of the old ones. Under LoRA, give their
    ids as ``trainable_token_indices`` of ``PeftConfig``, or the new rows stay untrained.

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
