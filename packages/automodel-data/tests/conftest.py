"""Tokenizers and templates that the tests share; everything is made here, nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "chat_templates"
TOKEN = re.compile(r"<\|[a-zA-Z_]+\|>|</?s>|<(?:start|end)_of_turn>|<bos>|<eos>|\[gMASK\]|<sop>")
EOS = {
    "llama3": "<|eot_id|>",
    "llama3_marked": "<|eot_id|>",
    "gemma": "<eos>",
    "phi3": "<|endoftext|>",
    "glm4": "<|endoftext|>",
    "deepseek": "<|end_of_sentence|>",
    **dict.fromkeys(("llama2", "mistral", "zephyr", "vicuna"), "</s>"),
}
CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is 12 times 7? It is 84.",
    "assistant\nuser\nsystem\nmodel\n\nHello there, how can I help you today?",
    "Größe, naïve café, 数学, привет, 🙂, {'a': [1, 2]}, def f(x): return x + 1",
] * 4


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("AUTOMODEL_DATA_CACHE", str(tmp_path_factory.mktemp("cache")))


def _byte_level(specials: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _pieces(specials: list[str]) -> Tokenizer:
    """SentencePiece style: spaces become pieces, unknown characters bytes."""
    bytes_ = {f"<0x{b:02X}>": i + 1 for i, b in enumerate(range(256))}
    letters = {
        c: i + 257 for i, c in enumerate("\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!\n0123456789")
    }
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("i", "n"), ("o", "n"), ("\n", "\n")]
    vocab = {"<unk>": 0, **bytes_, **letters}
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(specials)
    return backend


@pytest.fixture(scope="session")
def make_tokenizer():
    """``make_tokenizer(template=None, kind="byte_level")``: a small tokenizer with the template's special tokens."""
    made: dict = {}

    def make(template: str | None = None, kind: str = "byte_level") -> PreTrainedTokenizerFast:
        key = (template, kind)
        if key not in made:
            source = (TEMPLATES / f"{template}.jinja").read_text() if template else None
            eos = EOS.get(template or "", "<|im_end|>")
            specials = dict.fromkeys([*TOKEN.findall(source or ""), "<|im_start|>", eos, "<s>"])
            if template == "glm4":
                specials |= dict.fromkeys(["<|user|>", "<|assistant|>", "<|system|>"])
            builder = {"byte_level": _byte_level, "pieces": _pieces}[kind]
            made[key] = PreTrainedTokenizerFast(
                tokenizer_object=builder(list(specials)),
                eos_token=eos,
                bos_token="<s>",
                pad_token=eos,  # padding with EOS is the case that masks by id get wrong
                additional_special_tokens=[t for t in specials if t not in (eos, "<s>")],
            )
            made[key].chat_template = source
        return made[key]

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer("chatml")


@pytest.fixture(scope="session")
def supervised():
    """``supervised(tokenizer, row)``: text of the trained tokens of a row."""

    def decode(tokenizer, row) -> str:
        ids = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert all(label in (-100, i) for i, label in zip(row["input_ids"], row["labels"], strict=True))
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode
