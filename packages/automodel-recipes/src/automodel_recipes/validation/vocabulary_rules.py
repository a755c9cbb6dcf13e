"""Tokens that a configuration adds to the tokenizer: are they new, and will their rows train?"""

import json
from collections.abc import Iterator
from pathlib import Path

from automodel_core.config import ConfigError, ConfigNode
from automodel_recipes.build.vocabulary import HOLDERS, KEYS
from automodel_recipes.validation.report import Report

_TRAIN_ROWS = ("lora", "PeftConfig", "adapter", "AdapterConfig")


def added_tokens_are_new(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """Each is a text, stands once, and is not in the tokenizer's own file, where that is on this machine."""
    seen: dict[str, str] = {}
    known: dict[str, int] | None = None
    for path, token in _added(config):
        known = _vocabulary(config, path.partition(".")[0]) if known is None else known
        message = ""
        if not token.strip():
            message = f"{token!r} is blank; a token is a text of its own, remove it"
        elif token in seen:
            message = f"{token!r} stands at {seen[token]} already; a token has one id, remove one of them"
        elif token in known:
            message = f"{token!r} is a token already, with id {known[token]}; there is nothing to add, remove it"
        if message:
            report.add(config.source(path), path, message)
        seen.setdefault(token, path)


def added_rows_train(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """The rows of added tokens start at a mean and would stay there under a method that leaves the embedding alone."""
    path = next((path.rpartition(".")[0] for path, _ in _added(config)), None)
    if path is None:
        return
    target = str(config.get("peft._target_", ""))
    if config.get("peft") is None and config.get("freeze_config.freeze_embeddings") is True:
        message = "freezes the rows of added tokens as well; remove it, or train them alone with peft: {_target_: lora}"
        report.add(config.source("freeze_config.freeze_embeddings"), "freeze_config.freeze_embeddings", message)
    elif config.get("peft") is not None and target.rpartition(".")[2] not in _TRAIN_ROWS:
        message = f"needs peft._target_: lora, or no peft: {target!r} trains no rows of the embedding"
        report.add(config.source(path), path, message)


def _added(config: ConfigNode) -> Iterator[tuple[str, str]]:
    """Path and text of each added token; what is no list of texts is reported by the schema."""
    for holder in HOLDERS:
        for key in KEYS:
            tokens = config.get(f"{holder}.{key}") if isinstance(config.get(holder), ConfigNode) else None
            for index, token in enumerate(tokens if isinstance(tokens, list) else ()):
                if isinstance(token, str):
                    yield f"{holder}.{key}.{index}", token


def _vocabulary(config: ConfigNode, holder: str) -> dict[str, int]:
    """Tokens with their ids from ``tokenizer.json`` in a local directory; empty where there is none to look at."""
    if config.get(f"{holder}._target_") is not None or config.get(f"{holder}.subfolder"):
        return {}
    try:
        source = config.path(f"{holder}.pretrained_model_name_or_path") or config.path(
            "model.pretrained_model_name_or_path"
        )
        file = Path(source or "").expanduser() / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: pieces with their scores
            vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
        return {**vocabulary, **{token["content"]: token["id"] for token in content.get("added_tokens", ())}}
    except (ConfigError, OSError, ValueError, KeyError, TypeError):
        return {}  # whoever loads the tokenizer says what is wrong with it
