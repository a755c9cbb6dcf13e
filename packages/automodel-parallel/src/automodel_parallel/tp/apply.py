"""Apply a tensor-parallel plan: check that it fits, then edit the modules that it names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from automodel_parallel.blocks import find_blocks
from automodel_parallel.report import ParallelReport
from automodel_parallel.tp import styles
from automodel_parallel.tp.plans import Plan, decoder_path, resolve_plan, text_config
from automodel_parallel.tp.styles import TensorParallelGroup

Style = Callable[[nn.Module, TensorParallelGroup], None]


def _unchanged(module: nn.Module, tp: TensorParallelGroup) -> None:
    del module, tp


STYLES: dict[str, Style] = {
    "all_reduce": styles.all_reduce,
    "colwise": styles.colwise,
    "colwise_gather_output": partial(styles.colwise, gather_output=True),
    "colwise_local": partial(styles.colwise, copy_input=False),
    "colwise_rep": partial(styles.colwise, gather_output=True),
    "embedding_colwise": styles.embedding_colwise,
    "embedding_rowwise": styles.embedding_rowwise,
    "enter": styles.enter,
    "mla_kv_a_proj": styles.latent_with_shared_rotary,
    "repeat_whole": styles.repeat_whole,
    "replicate": _unchanged,
    "replicated_with_grad_allreduce": styles.replicated_with_partial_gradient,
    "rowwise": styles.rowwise,
    "rowwise_rep": partial(styles.rowwise, split_input=True),
    "rowwise_split_input": partial(styles.rowwise, split_input=True),
    "sequence_norm": styles.replicated_with_partial_gradient,
    "vocab_head": styles.vocab_head,
}
"""Style names that a plan may use: this package's, and those of Hugging Face's plans that mean the same."""

WHOLE_EXPERTS = ("moe_tp_experts", "moe_identity_expert", "grouped_gemm", "ep_dispatch_experts", "ep_router")
"""Hugging Face's styles of expert modules: every tensor rank computes them whole, which needs no edit. Ranks share
experts by expert parallelism."""


def apply_tensor_parallel(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    tp_plan: Mapping[str, str] | str | None = None,
    sequence_parallel: bool = False,
    loss_parallel: bool = False,
    report: ParallelReport | None = None,
) -> TensorParallelGroup:
    """Cut a model over the ranks of a one-axis mesh, in place. Parameters become DTensors under their own names.

    Args:
        model: whole on every rank, or on the meta device; with its LoRA layers, if any.
        mesh: one axis, ``tp``.
        tp_plan: see ``plans.resolve_plan``.
        sequence_parallel: split activations between the cut layers along the sequence, too.
        loss_parallel: logits stay a DTensor cut along the vocabulary, for a loss that works on it.

    Returns: what the cut modules share, by which sequence parallelism is paused.
    Raises: ValueError: heads that ``tp`` does not divide, a plan that names absent modules or an unknown style.
    """
    plan, source = resolve_plan(model, tp_plan)
    check_heads(model, mesh.size())
    matches = _match(model, plan, strict=source != "the model's _tp_plan")
    if sequence_parallel and "enter" not in plan.values():
        raise ValueError(
            f"sequence_parallel with {source}: it marks no module to 'enter', so nothing would gather the sequence. "
            "Use a built-in family plan, add 'enter' rows, or set sequence_parallel to false."
        )
    rotary_dim = getattr(text_config(model), "qk_rope_head_dim", None)
    tp = TensorParallelGroup(mesh, sequence_parallel, loss_parallel, rotary_dim=rotary_dim)
    done: Counter[str] = Counter()
    for path, style in matches.items():
        if style == "sequence_norm" and not sequence_parallel:
            continue
        _refuse_token_rows(path, model.get_submodule(path), style)
        STYLES[style](model.get_submodule(path), tp)
        done[style] += 1
    if sequence_parallel:
        _bound_sequence(model, tp)
    if report is not None:
        counts = ", ".join(f"{count} {style}" for style, count in sorted(done.items()))
        report.add(f"tensor parallel over {mesh.size()} ranks by {source}: {counts}")
    return tp


def _refuse_token_rows(path: str, module: nn.Module, style: str) -> None:
    """Raises: ValueError: only some rows of an embedding or head train, which are counted in the whole of it."""
    if style != "replicate" and hasattr(module, "token_rows"):
        raise ValueError(
            f"some rows of {path} train (trainable_token_indices, or tokens that were added) and tensor parallelism "
            "would cut it: train the whole embedding and head (peft.modules_to_save), or set tp_size to 1."
        )


def check_heads(model: nn.Module, tp_size: int) -> None:
    """Raises: ValueError: ``tp_size`` does not divide the attention heads or the key-value heads."""
    config = text_config(model)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % tp_size or key_value_heads % tp_size:
        allowed = [n for n in range(1, key_value_heads + 1) if heads % n == 0 and key_value_heads % n == 0]
        raise ValueError(
            f"tp_size={tp_size} with {heads} attention heads and {key_value_heads} key-value heads: it must divide "
            f"both. Choose one of {allowed}."
        )


def _match(model: nn.Module, plan: Plan, *, strict: bool) -> dict[str, str]:
    paths = [name for name, _ in model.named_modules()]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    matches: dict[str, str] = {}
    experts = [
        path for row, style in plan.items() if style in WHOLE_EXPERTS for path in paths if _regex(row).fullmatch(path)
    ]
    for pattern, style in plan.items():
        regex = _regex(pattern)
        found = [path for path in paths if regex.fullmatch(path)]
        matched = found + [name for name in parameters if regex.fullmatch(name)]
        if not strict and matched and all(_is_within(path, experts) for path in matched):
            continue
        if style not in STYLES and matched:
            raise ValueError(
                f"tensor-parallel style {style!r} of {pattern!r}: allowed are {', '.join(STYLES)}. Give a tp_plan "
                "with one of these for it, or leave it out to keep it whole on every rank."
            )
        if strict and not found:
            raise ValueError(
                f"the tensor-parallel plan names {pattern!r}, which matches no module of {type(model).__name__}. "
                "Remove the row, or correct the path (one '*' stands for one component)."
            )
        matches.update(dict.fromkeys(found, style))
    return matches


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))


def _is_within(path: str, modules: list[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _bound_sequence(model: nn.Module, tp: TensorParallelGroup) -> None:
    prefix = decoder_path(model)
    blocks = [
        block for name, block in find_blocks(model) if name.startswith(f"{prefix}.layers." if prefix else "layers.")
    ]
    styles.split_sequence(blocks[0], tp)
    styles.join_sequence(blocks[-1], tp)
