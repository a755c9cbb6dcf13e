"""Token ids and labels of rendered text: one tokenisation per row, labels by position.

Where the tokenizer maps text to tokens byte by byte (byte-level BPE, or pieces with byte fallback), the byte length of
each token is known beforehand, so character positions follow from a cumulative sum and the tokenizer need not track
offsets, which is its slowest part. The sum is trusted only if it ends at the text's own length; every other text is
tokenised with offsets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from automodel_data.errors import DataError
from automodel_data.templates import Rendered, Span

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenRow:
    """One encoded row; both arrays are int32 ``[T]``, labels unshifted with -100 where nothing is trained."""

    input_ids: np.ndarray
    labels: np.ndarray

    @cached_property
    def num_label_tokens(self) -> int:
        """Tokens that something is predicted for: the first has nothing before it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORE_INDEX))


class TextEncoder:
    """Encodes rendered texts with a fast Hugging Face tokenizer.

    Raises: DataError: the tokenizer has no fast backend, so token positions are unknown.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = _plain_backend(tokenizer)
        self._num_bytes = _bytes_per_token(self._backend)
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self.prefix_ids = _prefix_ids(self._backend)
        """What the tokenizer puts before a text that is no chat, such as BOS."""

    def fingerprint(self) -> str:
        """A digest of the vocabulary, the rules and the special tokens."""
        content = self._backend.to_str() + json.dumps(self._special_tokens, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, texts: Sequence[Rendered], *, add_prefix: bool = False) -> list[TokenRow]:
        """Tokenise a batch of texts; a token is trained when any of its characters lies in a span.

        Args:
            texts: texts with their trained spans.
            add_prefix: put `prefix_ids` (untrained) before each text; chat templates write their own.
        """
        return self.labelled(texts, self.tokenise(texts), add_prefix=add_prefix)

    def tokenise(self, texts: Sequence[Rendered]) -> list[Any]:
        """The first half of `encode`: the tokenizer's encodings, made without the interpreter lock."""
        return self._backend.encode_batch_fast([t.text for t in texts], add_special_tokens=False) if texts else []

    def labelled(self, texts: Sequence[Rendered], encodings: Sequence[Any], *, add_prefix: bool) -> list[TokenRow]:
        """The second half of `encode`: rows of what `tokenise` gave, which share the arrays of their batch."""
        bounds = [0, *accumulate(map(len, encodings))]
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=bounds[-1])
        labels = np.where(self._trained(texts, ids, bounds), ids, np.int32(IGNORE_INDEX))
        rows = [TokenRow(ids[begin:end], labels[begin:end]) for begin, end in pairwise(bounds)]
        return [_prefixed(row, self.prefix_ids) for row in rows] if add_prefix and self.prefix_ids else rows

    def _trained(self, texts: Sequence[Rendered], ids: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
        """Boolean ``[T]``: tokens that overlap a span of their text; those of text ``i`` begin at ``bounds[i]``."""
        trained = np.zeros(len(ids), dtype=bool)
        # Byte positions run on from text to text, so that one search finds the tokens of every span in the batch.
        edges = np.concatenate([[0], np.cumsum(self._num_bytes[ids])])
        starts = edges[bounds].tolist()
        spans: list[Span] = []
        for i, rendered in enumerate(texts):
            if rendered.spans == [(0, len(rendered.text))]:
                trained[bounds[i] : bounds[i + 1]] = True
            elif rendered.spans and starts[i + 1] - starts[i] == _num_bytes(rendered.text):
                spans += _byte_spans(rendered, starts[i])
            elif rendered.spans:
                trained[bounds[i] : bounds[i + 1]] = self._trained_by_offsets(rendered)
        _mark(trained, edges[:-1], edges[1:], spans)
        return trained

    def _trained_by_offsets(self, rendered: Rendered) -> np.ndarray:
        encoding = self._backend.encode(rendered.text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        trained = np.zeros(len(offsets), dtype=bool)
        _mark(trained, offsets[:, 0], offsets[:, 1], rendered.spans)
        return trained


def _mark(trained: np.ndarray, starts: np.ndarray, ends: np.ndarray, spans: Sequence[Span]) -> None:
    """Set ``trained`` for the tokens that overlap a span."""
    bounds = np.array(spans, dtype=np.int64).reshape(-1, 2)
    # Tokens are in text order: the first that ends after the span's start, to the last that starts before its end.
    first = np.searchsorted(ends, bounds[:, 0], side="right").tolist()
    last = np.searchsorted(starts, bounds[:, 1], side="left").tolist()
    for begin, end in zip(first, last):
        trained[begin:end] = True


def _byte_spans(rendered: Rendered, start: int) -> list[Span]:
    """The spans in UTF-8 bytes, counted from where the text starts."""
    if rendered.text.isascii():
        return [(start + begin, start + end) for begin, end in rendered.spans]
    cuts = [0, *chain.from_iterable(rendered.spans)]
    sizes = (_num_bytes(rendered.text[begin:end]) for begin, end in pairwise(cuts))
    positions = list(accumulate(sizes, initial=start))[1:]
    return list(zip(positions[::2], positions[1::2]))


def _prefixed(row: TokenRow, prefix: Sequence[int]) -> TokenRow:
    """The row behind ids that are not trained."""
    before = np.array(prefix, dtype=np.int32)
    return TokenRow(
        np.concatenate([before, row.input_ids]), np.concatenate([np.full_like(before, IGNORE_INDEX), row.labels])
    )


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _plain_backend(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"{type(tokenizer).__name__} has no fast backend: masks need token positions. Load the tokenizer with "
            f"`tokenizer.json` "
            "(AutoTokenizer does so where the file is there)."
        )
    if backend.truncation is None and backend.padding is None:
        return backend
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(backend.to_str())  # the caller's tokenizer keeps its own settings
    backend.no_truncation()
    backend.no_padding()
    return backend


def _bytes_per_token(backend: Any) -> np.ndarray:
    """UTF-8 bytes of text that each token id stands for, where that is fixed."""
    vocab = backend.get_vocab(with_added_tokens=True)
    added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
    byte_level = "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}"
    sizes = np.zeros(max([0, *vocab.values(), *added]) + 1, dtype=np.int64)
    for token, i in vocab.items():
        if i in added:
            sizes[i] = _num_bytes(added[i])
        elif byte_level:
            sizes[i] = len(token)  # one printable stand-in character per byte
        elif len(token) == 6 and token.startswith("<0x"):
            sizes[i] = 1
        else:
            sizes[i] = _num_bytes(token.replace("\u2581", " "))
    return sizes


def _prefix_ids(backend: Any) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for n in range(len(full) - len(bare) + 1):
        if full[n : n + len(bare)] == bare:
            return full[:n]
    return []
