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
from typing import Any

import numpy as np

from automodel_data.errors import DataError
from automodel_data.templates import Rendered

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenRow:
    """One encoded row; both arrays are int32 ``[T]``, labels unshifted with -100 where nothing is trained."""

    input_ids: np.ndarray
    labels: np.ndarray


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
        """The second half of `encode`: rows of what `tokenise` gave."""
        prefix = self.prefix_ids if add_prefix else []
        return [self._row(text, np.array(e.ids, dtype=np.int32), prefix) for text, e in zip(texts, encodings)]

    def _row(self, rendered: Rendered, ids: np.ndarray, prefix: list[int]) -> TokenRow:
        labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int32)
        if rendered.spans == [(0, len(rendered.text))]:
            labels[:] = ids
        elif rendered.spans:
            trained = self._trained(rendered, ids)
            labels[trained] = ids[trained]
        if prefix:
            ids = np.concatenate([np.array(prefix, dtype=np.int32), ids])
            labels = np.concatenate([np.full(len(prefix), IGNORE_INDEX, dtype=np.int32), labels])
        return TokenRow(ids, labels)

    def _trained(self, rendered: Rendered, ids: np.ndarray) -> np.ndarray:
        """Boolean ``[T]``: tokens that overlap a span."""
        text, spans = rendered.text, rendered.spans
        if self._num_bytes is not None:
            ends = np.cumsum(self._num_bytes[ids])
            if len(ends) and ends[-1] == _num_bytes(text):
                starts = ends - self._num_bytes[ids]
                spans = spans if text.isascii() else [(_num_bytes(text[:a]), _num_bytes(text[:b])) for a, b in spans]
                return _overlap(starts, ends, spans)
        offsets = np.array(self._backend.encode(text, add_special_tokens=False).offsets, dtype=np.int64).reshape(-1, 2)
        return _overlap(offsets[:, 0], offsets[:, 1], spans)


def _overlap(starts: np.ndarray, ends: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    trained = np.zeros(len(starts), dtype=bool)
    bounds = np.array(spans, dtype=np.int64)
    # Tokens are in text order: the first that ends after the span's start, to the last that starts before its end.
    first = np.searchsorted(ends, bounds[:, 0], side="right").tolist()
    last = np.searchsorted(starts, bounds[:, 1], side="left").tolist()
    for begin, end in zip(first, last):
        trained[begin:end] = True
    return trained


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


def _bytes_per_token(backend: Any) -> np.ndarray | None:
    """UTF-8 bytes of text that each token id stands for; None for a vocabulary where that is not fixed."""
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
        return None
    added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
    byte_level = "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}"
    sizes = np.zeros(max(*vocab.values(), *added, 0) + 1, dtype=np.int64)
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
