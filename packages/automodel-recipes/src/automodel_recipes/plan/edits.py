"""Edits of a configuration that need less memory, ranked by what each one saves."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from automodel_core.config import ConfigNode, config_from_dict
from automodel_recipes.plan.make import make_plan

_STATE_OF_8_BITS = 0.25
"""8-bit moments are a quarter of float32 ones, scales not counted."""
_LEAST_SAVING = 0.01


@dataclass(frozen=True)
class Edit:
    """One change, as overrides that can stand behind ``train CONFIG``."""

    overrides: tuple[str, ...]
    price: str
    """What else it changes."""


@dataclass(frozen=True)
class RankedEdit:
    """An edit with its estimated peak."""

    overrides: tuple[str, ...]
    price: str
    saved_bytes: int
    peak_bytes: int


def possible_edits(config: ConfigNode, *, world_size: int) -> Iterator[Edit]:
    """Edits that make sense for this configuration, whatever they save."""
    get = config.get
    recipe = str(get("recipe", ""))
    local = int(get("step_scheduler.local_batch_size", 1))
    strategy = get("distributed.strategy") or ("ddp" if world_size > 1 else "none")
    plain_loss = get("loss_fn") is None or "masked" in str(get("loss_fn._target_")).lower()
    own_loss = recipe.startswith(("Sequence", "Knowledge", "VLMKnow")) or get("distributed.pp_size", 1) != 1
    if plain_loss and not own_loss:
        yield Edit(("loss_fn._target_=fused_linear_ce",), "the same loss; full logits never exist")
    if local > 1:
        half = local // 2
        while int(get("step_scheduler.global_batch_size", local)) % (half * world_size) and half > 1:
            half -= 1
        yield Edit((f"step_scheduler.local_batch_size={half}",), "more accumulation for the same global batch")
    if not get("distributed.activation_checkpointing") and "_target_" not in (get("distributed") or {}):
        sharded = () if strategy == "fsdp2" else ("distributed.strategy=fsdp2",)
        yield Edit((*sharded, "distributed.activation_checkpointing=true"), "about a third more computation")
    if strategy == "ddp" and world_size > 1:
        yield Edit(("distributed.strategy=fsdp2",), f"shards over {world_size} ranks; more communication")
    if get("peft") is None:
        words = ("peft._target_=lora", "peft.dim=16", "peft.alpha=32")
        yield Edit(words, "trains adapters of every linear layer, not the model")
    if get("peft") is not None and str(get("model.dtype", "")).endswith("float32") and get("device", "auto") != "cpu":
        yield Edit(("model.dtype=bfloat16",), "rounds the frozen base")
    if packed := get("packed_sequence.packed_sequence_size"):
        yield Edit((f"packed_sequence.packed_sequence_size={packed // 2}",), "documents must fit into shorter rows")
    elif isinstance(length := get("dataset.seq_length"), int):
        yield Edit((f"dataset.seq_length={length // 2}",), "cuts or leaves out longer rows")


def rank_edits(
    config: ConfigNode, *, world_size: int, seq_length: int | None = None, longest_row: int | None = None
) -> tuple[int, list[RankedEdit]]:
    """The configuration's own estimated peak, and the edits that lower it, best first.

    Those that the layout refuses, or that save less than 1 %, are left out.
    """

    def peak(node: ConfigNode, **lengths: Any) -> tuple[int, Mapping[str, int]]:
        estimate = make_plan(node, world_size=world_size, **lengths).estimate
        return (0, {}) if estimate is None else (estimate.peak().total, estimate.static)

    lengths = {"seq_length": seq_length, "longest_row": longest_row}
    now, static = peak(config, **lengths)
    ranked = []
    for edit in possible_edits(config, world_size=world_size):
        shorter = edit.overrides[0].startswith("dataset.seq_length=")
        if shorter:  # only where it cuts what is there
            length = int(edit.overrides[0].partition("=")[2])
            longest = seq_length or longest_row or 2 * length
            then, _ = peak(config, seq_length=min(length, longest))
        else:
            then, _ = peak(edited(config, edit.overrides), **lengths)
        if 0 < then <= (1 - _LEAST_SAVING) * now:
            ranked.append(RankedEdit(edit.overrides, edit.price, now - then, then))
    ranked += _computed(config, now, static)
    return now, sorted(ranked, key=lambda edit: -edit.saved_bytes)


def _computed(config: ConfigNode, now: int, static: Mapping[str, int]) -> Iterator[RankedEdit]:
    """Edits whose saving follows from what stays in memory all the time."""
    if str(config.get("optimizer._target_", "")) == "torch.optim.AdamW":
        saved = int((1 - _STATE_OF_8_BITS) * static.get("optimizer", 0))
        if saved > _LEAST_SAVING * now:
            words = ("optimizer._target_=torchao.optim.AdamW8bit",)
            yield RankedEdit(words, "moments in 8 bits (pip install torchao)", saved, now - saved)
    if config.get("distributed.strategy") == "fsdp2" and not config.get("distributed.cpu_offload"):
        saved = sum(static.get(part, 0) for part in ("parameters", "gradients", "optimizer"))
        if saved > _LEAST_SAVING * now and config.get("device", "auto") != "cpu":
            price = "shards wait in host memory; every step copies them"
            yield RankedEdit(("distributed.cpu_offload=true",), price, saved, now - saved)


def edited(config: ConfigNode, overrides: tuple[str, ...]) -> ConfigNode:
    """The configuration with some values exchanged."""
    import yaml

    values = config.to_dict()
    for override in overrides:
        path, _, value = override.partition("=")
        *sections, key = path.split(".")
        at = values
        for section in sections:
            at = at.setdefault(section, {})
        at[key] = yaml.safe_load(value)
    return config_from_dict(values, allow_targets=config.policy.allow_targets)


def edit_lines(now: int, edits: list[RankedEdit]) -> list[str]:
    """``1. loss_fn._target_=fused_linear_ce saves 2.1 GiB, peak 4.0 GiB: ...``."""
    from automodel_recipes.plan.report import size

    lines = []
    for number, edit in enumerate(edits, start=1):
        gain = f"saves {size(edit.saved_bytes)}, peak {size(edit.peak_bytes)}"
        lines.append(f"{number}. {' '.join(edit.overrides)}: {gain}; {edit.price}")
    return lines or [f"no edit is known that lowers the estimated peak of {size(now)}"]


def rank_edits_elsewhere(
    config: ConfigNode, *, world_size: int, longest_row: int, timeout_s: float = 120.0
) -> list[str]:
    """`rank_edits` in a process of its own: this one has joined a process group, and its memory is full."""
    request = {
        "config": config.to_dict(),
        "allow": list(config.policy.allow_targets),
        "world_size": world_size,
        "longest_row": longest_row,
    }
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "automodel_recipes.plan.edits"],
        input=json.dumps(request, default=str),
        env={**kept, **hidden},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        return [f"no edits could be estimated: {' '.join(done.stderr.strip().splitlines()[-1:])}"]
    return list(json.loads(done.stdout.splitlines()[-1]))


def _main() -> None:
    request = json.load(sys.stdin)
    config = config_from_dict(request["config"], allow_targets=request["allow"])
    now, edits = rank_edits(config, world_size=request["world_size"], longest_row=request["longest_row"])
    sys.stdout.write(json.dumps(edit_lines(now, edits)) + "\n")


if __name__ == "__main__":
    _main()
