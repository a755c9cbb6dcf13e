"""Layouts of ``distributed`` that cannot be: told before anything is loaded."""

from math import prod
from typing import Any

from automodel_core.config import ConfigNode
from automodel_recipes.validation.facts import model_facts, number
from automodel_recipes.validation.report import Report

_MODEL_AXES = ("tp_size", "cp_size", "pp_size")
_SEVERAL_STAGES = ("interleaved1f1b", "zero_bubble")
# These compute their loss themselves, from whole sequences and whole models.
_OWN_LOSS = (
    "KnowledgeDistillationRecipe",
    "SequenceClassificationRecipe",
    "VLMKnowledgeDistillationRecipe",
)


def data_ranks(config: ConfigNode, nproc_per_node: int) -> int:
    """Processes that read different rows: all but those that tensor, context and pipeline parallelism take."""
    return max(nproc_per_node // prod(_size(config, axis) for axis in _MODEL_AXES), 1)


def ranks_multiply(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """Sizes must multiply to the number of processes, where that is known."""
    sizes = {axis: _size(config, axis) for axis in _MODEL_AXES if _size(config, axis) > 1}
    if nproc_per_node == 1 or not sizes:
        return
    model_ranks = prod(sizes.values())
    last = list(sizes)[-1]
    if nproc_per_node % model_ranks:
        named = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        message = f"{named} = {model_ranks} ranks do not divide {nproc_per_node} processes; change a size or the number"
        _add(config, report, last, message)
    elif number(config, "distributed.dp_size") not in (None, nproc_per_node // model_ranks):
        message = f"leaves {nproc_per_node // model_ranks} of {nproc_per_node} processes; write that, or none"
        _add(config, report, "dp_size", message)


def heads_divide(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """Tensor ranks share attention heads and key-value heads evenly."""
    tp_size, facts = _size(config, "tp_size"), model_facts(config)
    if tp_size == 1 or facts is None:
        return
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = facts.get(name)
        if isinstance(heads, int) and heads % tp_size:
            divisors = [n for n in range(2, heads + 1) if heads % n == 0]
            message = f"{tp_size} does not divide the model's {name} = {heads}; choose one of {divisors}, or 1"
            _add(config, report, "tp_size", message)
            return


def stages_hold_layers(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """Each pipeline stage has a layer, and a schedule gets the stages that it is for."""
    pp_size, per_rank = _size(config, "pp_size"), _size(config, "stages_per_rank")
    schedule, facts = config.get("distributed.pp_schedule", "1f1b"), model_facts(config) or {}
    if (per_rank > 1) != (schedule in _SEVERAL_STAGES):
        key = "stages_per_rank" if per_rank > 1 else "pp_schedule"
        message = f"stages_per_rank {per_rank} with pp_schedule {schedule}: 2 or more belong to {_SEVERAL_STAGES}"
        _add(config, report, key, message)
    layers, stages = facts.get("num_hidden_layers"), pp_size * per_rank
    if pp_size == 1 or not isinstance(layers, int):
        return
    split = config.get("distributed.layers_per_stage")
    if split is not None and (len(split) != stages or sum(split) != layers or min(split) < 1):
        message = f"{list(split)}: give {stages} numbers of 1 or more whose sum is the model's {layers} layers"
        _add(config, report, "layers_per_stage", message)
    elif stages > layers:
        message = f"makes {stages} stages of {layers} layers, so that one is empty; choose at most {layers // per_rank}"
        _add(config, report, "pp_size", message)


def axes_combine(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """What does not go together."""
    tp_size, cp_size, pp_size = (_size(config, axis) for axis in _MODEL_AXES)
    for key in ("sequence_parallel", "loss_parallel", "tp_plan"):
        if config.get(f"distributed.{key}") and tp_size == 1:
            _add(config, report, key, "needs tp_size of 2 or more")
        elif config.get(f"distributed.{key}") and pp_size > 1 and key != "tp_plan":
            _add(config, report, key, "does not go with pp_size of 2 or more; remove one of the two")
    if pp_size > 1 and cp_size > 1:
        _add(config, report, "cp_size", "does not go with pp_size of 2 or more; remove one of the two")
    recipe = config.get("recipe")
    if recipe in _OWN_LOSS and max(pp_size, cp_size) > 1:
        key = "pp_size" if pp_size > 1 else "cp_size"
        _add(config, report, key, f"does not go with {recipe}, whose loss needs whole sequences and models; set 1")


def experts_divide(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """Expert ranks share the experts evenly."""
    ep_size, facts = _size(config, "ep_size"), model_facts(config)
    if ep_size == 1 or facts is None:
        return
    experts = next((facts[key] for key in ("num_local_experts", "num_experts") if isinstance(facts.get(key), int)), 0)
    if not experts:
        _add(config, report, "ep_size", "the model has no experts to spread; set 1")
    elif experts % ep_size:
        _add(config, report, "ep_size", f"{ep_size} does not divide the model's {experts} experts; choose a divisor")


def tp_plan_is_allowed(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    """A plan by import path is code."""
    plan = config.get("distributed.tp_plan")
    if isinstance(plan, str) and not plan_is_allowed(config, plan):
        top = plan.partition(".")[0].partition(":")[0]
        _add(config, report, "tp_plan", f"{plan!r} imports code; if you trust it, allow it with --allow-target {top}")


def plan_is_allowed(config: ConfigNode, plan: str) -> bool:
    """Whether the command line, or being part of this project, permits an import path."""
    return plan == "hf" or plan.startswith("automodel_") or config.policy.allows(plan.replace(":", "."))


LAYOUT_RULES = (
    ranks_multiply,
    heads_divide,
    stages_hold_layers,
    axes_combine,
    experts_divide,
    tp_plan_is_allowed,
)


def _size(config: ConfigNode, axis: str) -> int:
    return number(config, f"distributed.{axis}") or 1


def _add(config: ConfigNode, report: Report, key: str, message: Any) -> None:
    report.add(config.source(f"distributed.{key}"), f"distributed.{key}", message)
