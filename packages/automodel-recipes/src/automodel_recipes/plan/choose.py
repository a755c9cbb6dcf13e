"""Fill in a first configuration: batch, packing, checkpointing and learning rate, each with the reason."""

import math
from pathlib import Path
from typing import Any

from automodel_core.config import ConfigNode, config_from_dict
from automodel_recipes.errors import RecipeError
from automodel_recipes.gpus import Gpu
from automodel_recipes.plan.data import row_lengths_here
from automodel_recipes.plan.estimate import Estimate, usable_bytes
from automodel_recipes.plan.make import make_plan
from automodel_recipes.plan.report import size

_GLOBAL_BATCH = 32
_LONGEST = 4096
_LARGEST_MICRO_BATCH = 16
_LARGE_MODEL = 3e9
_CPU_SHARE = 0.5
"""Of the host's free memory, which Python, the data and checkpoints need as well."""


def choose(config: dict[str, Any], *, gpu: Gpu | None) -> dict[str, str]:
    """Change ``config`` in place; returns a comment for each section that was chosen.

    Args:
        config: what `starter_config` made.
        gpu: what it will train on; None: this machine's CPU.
    """
    comments: dict[str, str] = {}
    config["model"]["dtype"] = "bfloat16" if gpu is not None and "peft" in config else "float32"
    if gpu is not None and "peft" not in config:
        config["mixed_precision"] = {"dtype": "bfloat16"}
        comments["mixed_precision"] = "Weights and moments in float32, so that small updates are not lost."
    if gpu is not None and "peft" in config:
        config["peft"]["lora_dtype"] = "float32"
    config["loss_fn"] = {"_target_": "fused_linear_ce"}
    comments["loss_fn"] = "The loss of masked_ce without ever holding the logits of all tokens."
    _choose_rows(config, comments)
    try:
        _choose_batch(config, comments, gpu)
    except (RecipeError, OSError) as error:
        comments["step_scheduler"] = f"Not planned: {' '.join(str(error).split())[:160]}"
    return comments


def _choose_rows(config: dict[str, Any], comments: dict[str, str]) -> None:
    lengths = row_lengths_here(config_from_dict(config))
    if not lengths:
        comments["dataset"] = "The rows are not on this machine: check seq_length with `data check`."
        return
    longest, mean = max(lengths), sum(lengths) / len(lengths)
    length = min(64 * math.ceil(longest / 64), _LONGEST)
    for section in {"dataset", "validation_dataset"} & config.keys():
        config[section]["seq_length"] = length
    comments["dataset"] = (
        f"Of {len(lengths):,} rows looked at the longest has {longest:,} tokens, the mean is {mean:.0f}."
    )
    if mean < 0.5 * longest or mean < 128:
        pack = max(length, 512)
        config["packed_sequence"] = {"packed_sequence_size": pack}
        packs = max(4, round(_GLOBAL_BATCH * mean / pack))
        config["step_scheduler"]["global_batch_size"] = packs
        comments["packed_sequence"] = (
            f"Padding to the longest row would waste {100 * (1 - mean / longest):.0f} % of a batch; "
            f"a pack holds about {pack / mean:.0f} rows."
        )


def _choose_batch(config: dict[str, Any], comments: dict[str, str], gpu: Gpu | None) -> None:
    room, where = _room(gpu)
    config["step_scheduler"]["local_batch_size"] = 1
    estimate = _plan(config, gpu)
    large = estimate.trace.num_parameters >= _LARGE_MODEL
    _choose_rate(config, comments, large=large)
    most = estimate.largest_micro_batch(room)
    if most < 2:
        config["distributed"] = {"strategy": "fsdp2", "activation_checkpointing": True}
        comments["distributed"] = "Activations are computed twice and not kept, since memory is short."
        estimate = _plan(config, gpu)
        most = estimate.largest_micro_batch(room)
    total = config["step_scheduler"]["global_batch_size"]
    local = max(n for n in range(1, total + 1) if total % n == 0 and n <= max(1, min(most, _LARGEST_MICRO_BATCH)))
    config["step_scheduler"]["local_batch_size"] = local
    peak = size(estimate.peak(local).total)
    comments["step_scheduler"] = f"A micro-batch of {local} takes {peak} of {size(room)} {where}, by `plan`."
    if most < 1:
        comments["step_scheduler"] = (
            f"One row takes {peak}, and there are {size(room)} {where}: use more of them "
            "(`plan --world-size N`), or a smaller model."
        )


def _choose_rate(config: dict[str, Any], comments: dict[str, str], *, large: bool) -> None:
    adapters = "peft" in config
    config["optimizer"]["lr"] = (1e-4 if large else 2e-4) if adapters else (1e-5 if large else 2e-5)
    kind = "adapters" if adapters else "every weight"
    comments["optimizer"] = f"Usual for {kind} of a model {'above' if large else 'below'} 3 B; try a third and thrice."


def _plan(config: dict[str, Any], gpu: Gpu | None) -> Estimate:
    node: ConfigNode = config_from_dict({**config, **({} if gpu is not None else {"device": "cpu"})})
    plan = make_plan(node, world_size=1, gpu=gpu)
    if plan.estimate is None:
        raise RecipeError("; ".join(plan.problems))
    return plan.estimate


def _room(gpu: Gpu | None) -> tuple[float, str]:
    if gpu is not None:
        return usable_bytes(gpu), f"on {gpu.name}"
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return _CPU_SHARE * int(line.split()[1]) * 1024, "of this machine"
    raise RecipeError("this system does not tell its free memory; name a GPU by --gpu")
