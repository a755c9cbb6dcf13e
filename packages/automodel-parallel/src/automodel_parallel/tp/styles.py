"""What tensor parallelism does to one module: cut its parameters, and run its own forward on the parts.

Activations are plain tensors, so a module's forward is its own: LoRA, a fused kernel or an FP8 linear work as they do
on one rank. Everything relies on linearity, hence DoRA's weight norm is refused where the input is cut.

A linear layer ``[out, in]`` with adapter ``A [r, in]``, ``B [out, r]``:

* colwise cuts ``out``: weight, bias and B on dim 0; A is whole, and its gradient is a sum over ranks.
* rowwise cuts ``in``: weight and A on dim 1; B is whole, its gradient a sum; outputs are summed, the bias added once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from automodel_parallel import collectives
from automodel_parallel.local_parameters import distribute, local_chunk_sizes, local_parameters, require_floating


@dataclass
class TensorParallelGroup:
    """The ranks that share each layer, and what they have agreed on."""

    mesh: DeviceMesh
    """One-axis mesh ``tp``."""
    sequence_parallel: bool = False
    """Between the cut layers, activations are split along the sequence (dim 1)."""
    loss_parallel: bool = False
    """The head returns logits as a DTensor cut along the vocabulary instead of gathering them."""
    memo: dict[nn.Parameter, nn.Parameter] = field(default_factory=dict)
    """Whole parameter -> its DTensor, so that tied modules stay tied."""

    rotary_dim: int | None = None
    """Width of the rotary part of latent attention, where the model has it."""
    paused: bool = False
    """While true, sequences stay whole between the cut layers, and logits are gathered."""

    @contextmanager
    def whole_sequences(self) -> Iterator[None]:
        """Inside, sequence parallelism rests, so that sequences may have any length; no gradients."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    @property
    def splits_sequence(self) -> bool:
        """Whether activations between cut layers are parts of the sequence at this moment."""
        return self.sequence_parallel and not self.paused

    @property
    def group(self) -> dist.ProcessGroup:
        """Process group of the axis."""
        return self.mesh.get_group()


def colwise(
    module: nn.Module, tp: TensorParallelGroup, *, copy_input: bool = True, gather_output: bool = False
) -> None:
    """Cut the output features. ``copy_input=False`` where the parent has copied (or gathered) the input already."""
    out_features = module.weight.shape[0]
    gradients = _cut(module, tp, {"lora_A": Replicate()}, default=Shard(0))
    sizes = local_chunk_sizes(out_features, tp.mesh.size())

    def before(x: Tensor) -> Tensor:
        return collectives.copy_to_group(x, tp.group) if copy_input else x

    def after(y: Tensor) -> Tensor:
        return collectives.gather(y, tp.group, dim=-1, sizes=sizes) if gather_output else y

    _install(module, gradients, before, after)


def vocab_head(module: nn.Module, tp: TensorParallelGroup) -> None:
    """Cut the head along the vocabulary; logits are gathered, or stay a DTensor under ``loss_parallel``."""
    vocab_size = module.weight.shape[0]
    gradients = _cut(module, tp, {"lora_A": Replicate()}, default=Shard(0))
    sizes = local_chunk_sizes(vocab_size, tp.mesh.size())

    def after(y: Tensor) -> Tensor:
        if tp.paused or not tp.loss_parallel:
            return collectives.gather(y, tp.group, dim=-1, sizes=sizes)
        shape = torch.Size((*y.shape[:-1], vocab_size))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(y, tp.mesh, [Shard(y.ndim - 1)], run_check=False, shape=shape, stride=stride)

    _install(module, gradients, lambda x: collectives.copy_to_group(x, tp.group), after)


def rowwise(module: nn.Module, tp: TensorParallelGroup, *, split_input: bool = False) -> None:
    """Cut the input features and sum the outputs. ``split_input`` where the input arrives whole."""
    if any("magnitude" in name for name, _ in module.named_parameters()):
        raise ValueError(
            "DoRA on a row-cut layer needs the norm of whole weight rows, which no rank holds: take the layer out of "
            "target_modules, use plain LoRA, or set tp_size to 1."
        )
    gradients = _cut(module, tp, {"bias": Replicate(), "lora_B": Replicate()}, default=Shard(1))

    def before(x: Tensor) -> Tensor:
        return collectives.split(x, tp.group, dim=-1) if split_input else x

    def after(y: Tensor) -> Tensor:
        if tp.splits_sequence and not split_input:
            return collectives.sum_and_scatter(y, tp.group, dim=1)
        return collectives.sum_over_group(y, tp.group)

    _install(module, gradients, before, after, bias_rank=tp.group.rank())


def embedding_rowwise(module: nn.Module, tp: TensorParallelGroup) -> None:
    """Cut an embedding along the vocabulary: each rank looks up the tokens it holds, and the results are summed."""
    sizes = local_chunk_sizes(module.weight.shape[0], tp.mesh.size())
    start = sum(sizes[: tp.group.rank()])
    held = sizes[tp.group.rank()]
    _cut(module, tp, {}, default=Shard(0))
    padding = getattr(module, "padding_idx", None)
    if padding is not None:
        module.padding_idx = padding - start if start <= padding < start + held else None
    forward = module.forward

    def sharded_forward(ids: Tensor) -> Tensor:
        local = ids - start
        elsewhere = (local < 0) | (local >= held)
        with local_parameters(module):
            embedded = forward(local.masked_fill(elsewhere, 0))
        return collectives.sum_over_group(embedded.masked_fill(elsewhere.unsqueeze(-1), 0.0), tp.group)

    module.forward = sharded_forward


def embedding_colwise(module: nn.Module, tp: TensorParallelGroup) -> None:
    """Cut an embedding's features; the parts are joined."""
    sizes = local_chunk_sizes(module.weight.shape[1], tp.mesh.size())
    gradients = _cut(module, tp, {}, default=Shard(1))
    _install(module, gradients, lambda ids: ids, lambda y: collectives.gather(y, tp.group, dim=-1, sizes=sizes))


def all_reduce(module: nn.Module, tp: TensorParallelGroup) -> None:
    """The module's output is one term of a sum over ranks."""
    module.register_forward_hook(lambda _, __, y: collectives.sum_over_group(y, tp.group))


def latent_with_shared_rotary(module: nn.Module, tp: TensorParallelGroup) -> None:
    """Down-projection of latent attention (DeepSeek): whole on each rank, with a rotary part that all heads share.

    The latent part enters a column-cut layer, whose input gradients are summed there; those of the rotary part, which
    goes straight to this rank's heads, are summed here.
    """
    rotary = tp.rotary_dim
    if rotary is None:
        raise ValueError(
            f"style 'mla_kv_a_proj' on {type(module).__name__}: the model's config has no qk_rope_head_dim. Leave the "
            "row out and keep attention whole, or set tp_size to 1."
        )

    def share(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        latent, rotated = y.split([y.shape[-1] - rotary, rotary], dim=-1)
        return torch.cat([latent, collectives.copy_to_group(rotated, tp.group)], dim=-1)

    module.register_forward_hook(share)


def replicated_with_partial_gradient(module: nn.Module, tp: TensorParallelGroup) -> None:
    """Whole parameters that each rank applies to its part of heads or tokens: their gradients are sums over ranks."""
    gradients = _cut(module, tp, {}, default=Replicate(), partial=True)
    _install(module, gradients, lambda x: x, lambda y: y)


def enter(module: nn.Module, tp: TensorParallelGroup) -> None:
    """Bring the hidden states of an attention or MLP to all ranks once, for all of its column-cut layers."""

    def bring(x: Tensor) -> Tensor:
        if tp.splits_sequence:
            return collectives.gather_for_partial(x, tp.group, dim=1)
        return collectives.copy_to_group(x, tp.group)

    on_hidden_states(module, bring)


def repeat_whole(module: nn.Module, tp: TensorParallelGroup) -> None:
    """Every rank computes the whole module (mixture-of-experts blocks): only sequence parallelism needs an edit."""
    if not tp.sequence_parallel:
        return
    on_hidden_states(module, lambda x: collectives.gather(x, tp.group, dim=1) if tp.splits_sequence else x)
    module.register_forward_hook(lambda _, __, y: collectives.split(y, tp.group, dim=1) if tp.splits_sequence else y)


def split_sequence(module: nn.Module, tp: TensorParallelGroup) -> None:
    """At the first block: keep this rank's tokens.

    The hook raises ValueError for a sequence that the ranks do not divide.
    """

    def cut(x: Tensor) -> Tensor:
        if not tp.splits_sequence:
            return x
        if x.size(1) % tp.mesh.size():
            raise ValueError(
                f"sequence_parallel with sequences of {x.size(1)} tokens on {tp.mesh.size()} tensor ranks: the length "
                "must divide. Pass the batch through context.shard_sequence(), which fills it up."
            )
        return collectives.split(x, tp.group, dim=1)

    on_hidden_states(module, cut)


def join_sequence(module: nn.Module, tp: TensorParallelGroup) -> None:
    """After the last block: all tokens on every rank again."""
    module.register_forward_hook(lambda _, __, y: collectives.gather(y, tp.group, dim=1) if tp.splits_sequence else y)


def on_hidden_states(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Apply ``change`` to the first argument of a module, or to its ``hidden_states`` keyword."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _cut(
    module: nn.Module,
    tp: TensorParallelGroup,
    special: dict[str, Placement],
    *,
    default: Placement,
    partial: bool = False,
) -> dict[str, list[Placement]]:
    """Distribute all parameters below ``module``; returns the gradient layout of those that hold one term of a sum."""
    gradients: dict[str, list[Placement]] = {}
    for path, parameter in list(module.named_parameters(remove_duplicate=False)):
        require_floating(path, parameter)
        placement = next((p for name, p in special.items() if name in path.split(".")), default)
        if parameter.ndim == 1 and placement == Shard(1):
            placement = Replicate()
        parent_path, _, name = path.rpartition(".")
        parent = module.get_submodule(parent_path)
        parent._parameters[name] = distribute(parameter, tp.mesh, [placement], tp.memo)
        if placement == Replicate() or partial:
            gradients[path] = [Partial()]
    return gradients


def _install(
    module: nn.Module,
    gradients: dict[str, list[Placement]],
    before: Callable[[Tensor], Tensor],
    after: Callable[[Tensor], Tensor],
    *,
    bias_rank: int | None = None,
) -> None:
    forward = module.forward

    def sharded_forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        replace = _bias_once(module, bias_rank) if bias_rank is not None else None
        x = before(x)
        with local_parameters(module, gradients, replace):
            y = forward(x, *args, **kwargs)
        return after(y)

    module.forward = sharded_forward


def _bias_once(module: nn.Module, rank: int) -> dict[str, Tensor] | None:
    """The bias for rank 0 and zeros elsewhere, since the outputs are summed."""
    bias = getattr(module, "bias", None)
    if bias is None:
        return None
    return {"bias": bias.to_local(grad_placements=[Partial()]) * float(rank == 0)}
