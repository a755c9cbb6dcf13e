"""The data side: tokenizer, datasets and the loaders that deal them to the ranks."""

from functools import partial
from typing import Any

from automodel_core.config import ConfigNode, Secret
from automodel_data.collate import default_collater, packed_collater
from automodel_data.loader import build_dataloader, build_eval_dataloader
from automodel_recipes.build.call import accepted, build, plain
from automodel_recipes.build.vocabulary import KEYS, extended
from automodel_recipes.errors import UnusableInputError


def build_tokenizer(config: ConfigNode) -> Any:
    """The tokenizer of the ``tokenizer`` section, by default the one that lies beside the model."""
    from transformers import AutoTokenizer

    section = config.get("tokenizer")
    if section is not None and "_target_" in section:
        return extended(section.without(*KEYS).instantiate(), section)
    keys = plain(None if section is None else section.without(*KEYS))
    source = keys.pop("pretrained_model_name_or_path", None) or _model_source(config)
    if isinstance(token := config.get("tokenizer.token"), Secret):
        keys["token"] = token.reveal()
    for key in ("gguf_file", "revision"):
        if key not in keys and config.get(f"model.{key}") is not None:
            keys[key] = config.get(f"model.{key}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **keys)
    except (OSError, ValueError) as error:
        raise UnusableInputError(
            f"no tokenizer can be loaded from {source}: {error} "
            "Name one by tokenizer.pretrained_model_name_or_path, a local directory or a hub id."
        ) from error
    return extended(tokenizer, section)


def _model_source(config: ConfigNode) -> str:
    source = config.path("model.pretrained_model_name_or_path")
    if source is None:
        raise UnusableInputError(
            "the model section names no pretrained_model_name_or_path, so there is no tokenizer to take from it. "
            "Add tokenizer.pretrained_model_name_or_path."
        )
    return source


def pad_token_id(tokenizer: Any) -> int:
    """The id that fills rows up; which one does not matter, since masks go by position."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def build_train_loader(config: ConfigNode, dataset: Any, *, collate_fn: Any, parallel: Any, seed: int) -> Any:
    """The resumable loader over this rank's share of every global batch."""
    section = config.get("dataloader")
    return build_dataloader(
        dataset,
        collate_fn=collate_fn,
        global_batch_size=global_batch_size(config, parallel.dp_size),
        local_batch_size=config.get("step_scheduler.local_batch_size", 1),
        dp_rank=parallel.dp_rank,
        dp_size=parallel.dp_size,
        seed=seed,
        **_loader_options(section),
    )


def build_eval_loader(config: ConfigNode, dataset: Any, *, collate_fn: Any, parallel: Any) -> Any:
    """Every row of a validation set exactly once over the ranks, the same number of batches on each."""
    section = config.get("validation_dataloader") or config.get("dataloader")
    options = _loader_options(section)
    for of_training in ("shuffle", "shuffle_block"):
        options.pop(of_training, None)
    batch_size = section.get("batch_size") if section is not None else None
    return build_eval_dataloader(
        dataset,
        collate_fn=collate_fn,
        local_batch_size=batch_size or config.get("step_scheduler.local_batch_size", 1),
        dp_rank=parallel.dp_rank,
        dp_size=parallel.dp_size,
        **options,
    )


def global_batch_size(config: ConfigNode, dp_size: int) -> int:
    """``step_scheduler.global_batch_size``; the older ``grad_acc_steps`` gives it as local x accumulation x ranks."""
    local = config.get("step_scheduler.local_batch_size", 1)
    accumulation = config.get("step_scheduler.grad_acc_steps")
    if accumulation is not None:
        return local * accumulation * dp_size
    return config.get("step_scheduler.global_batch_size", local * dp_size)


def build_collate_fn(section: ConfigNode | None, *, tokenizer: Any, packed: bool) -> Any:
    """The collate function of a dataloader section; padding for plain rows, flat packing for packed ones."""
    node = section.get("collate_fn") if section is not None else None
    runtime = {"pad_token_id": pad_token_id(tokenizer), "tokenizer": tokenizer}
    if node is not None:
        target = node.target()
        keys = {name: value for name, value in node.to_dict().items() if name != "_target_"}
    else:
        target = packed_collater if packed else default_collater
        keys = {}
    return partial(target, **{**accepted(target, runtime), **keys})


def build_dataset(section: ConfigNode, *, tokenizer: Any, **offered: Any) -> Any:
    """A dataset of rows, with the tokenizer handed to it where it takes one."""
    return build(section, tokenizer=tokenizer, **offered)


def _loader_options(section: ConfigNode | None) -> dict[str, Any]:
    known = ("num_workers", "shuffle", "shuffle_block", "pin_memory")
    return {key: section.get(key) for key in known if section is not None and key in section}
