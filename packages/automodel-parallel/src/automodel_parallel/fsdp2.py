"""Sharded data parallelism: torch's FSDP2 on every block and on the root, summing gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from automodel_parallel.activation_checkpoint import ActivationCheckpointing, apply_activation_checkpointing
from automodel_parallel.compile import CompileConfig, compile_blocks
from automodel_parallel.context import ParallelContext
from automodel_parallel.context_parallel import (
    ContextParallelState,
    apply_context_parallel,
    own_attention,
    shard_sequence,
)
from automodel_parallel.context_vision import shard_vision_batch
from automodel_parallel.expert_parallel import apply_expert_parallel
from automodel_parallel.init import DistInfo, ensure_process_group
from automodel_parallel.mesh import Meshes, ParallelDims
from automodel_parallel.pipeline import SCHEDULES, SEVERAL_STAGES, Pipeline
from automodel_parallel.pipeline_split import StageRange, check_injected_features, check_router, prune, stage_ranges
from automodel_parallel.report import ParallelReport
from automodel_parallel.sequences import pad_sequences
from automodel_parallel.sharding import apply_fsdp2, parse_mp_policy
from automodel_parallel.tp import apply_tensor_parallel
from automodel_parallel.tp.plans import decoder_path
from automodel_parallel.tp.styles import TensorParallelGroup


@dataclass(frozen=True, kw_only=True)
class FSDP2Manager:
    """Shard parameters, gradients and optimizer state over the data ranks."""

    dp_size: int | str | None = None
    """Data ranks; none: what the other axes leave of the world size."""
    dp_replicate_size: int | str | None = None
    """Groups of ranks with a whole copy each (HSDP): shard inside a machine, replicate across. None: 1."""
    mp_policy: MixedPrecisionPolicy | Mapping[str, Any] | None = None
    """Dtypes of compute and reduction, e.g. ``{param_dtype: bfloat16, reduce_dtype: float32}``. None: as loaded."""
    cpu_offload: bool = False
    """Keep shards, gradients and optimizer state in host memory; the optimizer then steps on the CPU."""
    reshard_after_forward: bool = True
    """Free a block's full weights after its forward (ZeRO-3); False keeps them for the backward (ZeRO-2)."""
    defer_gradient_sync: bool = False
    """Reduce gradients once per step instead of per micro-batch. Holds *unsharded* gradients of all trainable
    parameters meanwhile: 4 bytes (2 in bf16) times the trainable parameters on every rank."""
    forward_prefetch: int = 0
    """Blocks gathered ahead of the running one in forward; 0 leaves it to FSDP2, which overlaps one."""
    backward_prefetch: int = 0
    """The same in backward."""
    tp_size: int | str | None = None
    """Tensor ranks: each layer is cut over them. Neighbouring ranks, best on one machine."""
    tp_plan: Mapping[str, str] | str | None = None
    """Style by module path, ``package.module:name`` of such a mapping, or ``hf`` for the model's ``_tp_plan``. None:
    the family's built-in plan, else the model's."""
    sequence_parallel: bool = False
    """With ``tp_size``: norms and residuals hold a part of the sequence; lengths must divide by ``tp_size``."""
    loss_parallel: bool = False
    """With ``tp_size``: logits stay cut along the vocabulary (a DTensor), for a loss that can work on them."""
    cp_size: int | str | None = None
    """Context ranks: each holds a part of every sequence."""
    cp_method: str = "all_gather"
    """``all_gather``: one fused attention over gathered keys and values; ``ring``: they are passed around, and memory
    does not grow with ``cp_size``, at the price of an attention without fused kernels."""
    cp_load_balanced: bool = True
    """Each context rank gets an early and a late chunk, so that causal attention costs the same everywhere."""
    pp_size: int | str | None = None
    """Pipeline stages (ranks): each holds a part of the layers. A step's micro-batches flow through them."""
    pp_schedule: str = "1f1b"
    """``1f1b`` or ``gpipe``; ``interleaved1f1b`` or ``zero_bubble`` with ``stages_per_rank`` of 2 or more."""
    stages_per_rank: int = 1
    """Stages of each pipeline rank, taken in turns: a smaller bubble for more communication."""
    layers_per_stage: Sequence[int] | None = None
    """Decoder layers of each stage; None: as even as can be."""
    ep_size: int | str | None = None
    """Expert ranks of a mixture of experts: 1, or all ranks that share one copy (``dp_shard x cp``)."""
    activation_checkpointing: bool | str | Mapping[str, Any] | ActivationCheckpointing | None = None
    """``true`` or ``full``, ``selective``, or a mapping; see ``ActivationCheckpointing``."""
    compile: bool | Mapping[str, Any] | CompileConfig | None = None
    """``true`` or a mapping; see ``CompileConfig``. Each block is compiled on its own."""

    def setup(self, info: DistInfo) -> FSDP2Context:
        """Bind to the ranks.

        Raises: ValueError: sizes that do not factor the world size, or an unknown key in ``mp_policy``.
        """
        dims = ParallelDims.derive(
            world_size=info.world_size,
            dp_size=self.dp_size,
            dp_replicate_size=self.dp_replicate_size,
            tp_size=self.tp_size,
            cp_size=self.cp_size,
            pp_size=self.pp_size,
            ep_size=self.ep_size,
        )
        self._check(dims)
        ensure_process_group(info)
        return FSDP2Context(info, dims, dims.build_meshes(info.device.type), manager=self)

    def _check(self, dims: ParallelDims) -> None:
        parse_mp_policy(self.mp_policy)
        ActivationCheckpointing.parse(self.activation_checkpointing)
        CompileConfig.parse(self.compile)
        if self.cp_method not in ("all_gather", "ring"):
            raise ValueError(f"cp_method={self.cp_method!r}: it must be all_gather or ring. Change it.")
        for name in ("sequence_parallel", "loss_parallel", "tp_plan"):
            if getattr(self, name) and dims.tp == 1:
                raise ValueError(f"{name} without tensor ranks: set tp_size to 2 or more, or remove {name}.")
        if dims.ep not in (1, dims.dp_shard * dims.cp) or (dims.ep > 1 and dims.dp_replicate > 1):
            raise ValueError(
                f"ep_size={dims.ep} with dp_replicate {dims.dp_replicate}, dp_shard {dims.dp_shard} and cp {dims.cp}: "
                f"experts spread over all ranks of one copy. Set ep_size to {dims.dp_shard * dims.cp} and "
                "dp_replicate_size to 1."
            )
        self._check_pipeline(dims)

    def _check_pipeline(self, dims: ParallelDims) -> None:
        if self.pp_schedule not in SCHEDULES:
            names = ", ".join(SCHEDULES)
            raise ValueError(f"pp_schedule={self.pp_schedule!r}: it must be one of {names}. Change it.")
        if (self.stages_per_rank > 1) != (self.pp_schedule in SEVERAL_STAGES):
            raise ValueError(
                f"stages_per_rank={self.stages_per_rank} with pp_schedule={self.pp_schedule!r}: several stages per "
                f"rank belong to {' and '.join(SEVERAL_STAGES)}, one to the others. Change one of them."
            )
        shards = dims.dp * dims.cp
        if self.pp_schedule == "zero_bubble" and (shards > 1 or CompileConfig.parse(self.compile).enabled):
            raise ValueError(
                f"pp_schedule='zero_bubble' with {shards} sharding ranks and compile={self.compile!r}: torch splits "
                "the backward of whole, eager blocks only. Choose interleaved1f1b, or drop the others."
            )
        if dims.pp > 1 and (dims.cp > 1 or self.sequence_parallel or self.loss_parallel):
            raise ValueError(
                f"pp_size={dims.pp} with cp_size={dims.cp}, sequence_parallel={self.sequence_parallel}, loss_parallel="
                f"{self.loss_parallel}: a pipeline combines with data and tensor ranks. Set the others to 1 or false."
            )


class FSDP2Context(ParallelContext):
    """``FSDP2Manager`` bound to its ranks."""

    strategy = "fsdp2"
    meshes: Meshes

    def __init__(self, info: DistInfo, dims: ParallelDims, meshes: Meshes, *, manager: FSDP2Manager) -> None:
        super().__init__(info, dims, meshes)
        self.manager = manager
        self.shards_parameters = info.world_size > dims.dp_replicate
        self._sequence: ContextParallelState | None = None
        self._tensor_group: TensorParallelGroup | None = None
        self._tied_stages = False
        self._sees_images = False
        if dims.cp > 1:
            group = meshes.axes["cp"].get_group()
            self._sequence = ContextParallelState(
                group, ring=manager.cp_method == "ring", load_balanced=manager.cp_load_balanced
            )

    def parallelize(self, model: nn.Module) -> tuple[nn.Module, ParallelReport]:
        """Cut, checkpoint, compile and shard the model in place; parameters become DTensors under their own names."""
        manager = self.manager
        report = ParallelReport(self.strategy, self.dims.describe())
        if self.dims.tp > 1:
            self._tensor_group = apply_tensor_parallel(
                model,
                self.meshes.shard["tp"],
                tp_plan=manager.tp_plan,
                sequence_parallel=manager.sequence_parallel,
                loss_parallel=manager.loss_parallel,
                report=report,
            )
        shards = self.meshes.shard["dp_shard_cp"]
        experts = apply_expert_parallel(model, shards, report=report) if self.dims.ep > 1 else set()
        ranges = self._prune_to_stages(model, report) if self.dims.pp > 1 else []
        if self._sequence is not None:
            apply_context_parallel(model, self._sequence, report=report)
            config: Any = model.config
            self._sees_images = config.get_text_config() is not config
        compiler = CompileConfig.parse(manager.compile)
        checkpointing = ActivationCheckpointing.parse(manager.activation_checkpointing)
        apply_activation_checkpointing(model, checkpointing, compiled=compiler.enabled, report=report)
        compile_blocks(model, compiler, report=report)
        apply_fsdp2(model, self.meshes.shard, manager=manager, report=report, ignored=experts)
        model = self._to_device(model)
        if ranges:
            self.pipeline = self._build_pipeline(model, ranges)
            self.batches_per_forward = 2 * self.pipeline.num_stages
        return model, report

    def _prune_to_stages(self, model: nn.Module, report: ParallelReport) -> list[StageRange]:
        manager, rank = self.manager, self.meshes.axes["pp"].get_local_rank()
        num_stages = self.dims.pp * manager.stages_per_rank
        layers = model.get_submodule(decoder_path(model)).layers
        split = list(manager.layers_per_stage) if manager.layers_per_stage is not None else None
        ranges = stage_ranges(len(layers), num_stages, split)
        check_injected_features(model, ranges[0])
        check_router(model)
        mine = [where for where in ranges if where.index % self.dims.pp == rank]
        self._tied_stages = prune(model, mine)
        parts = ", ".join(f"{where.start}-{where.end - 1}" for where in ranges)
        report.add(f"pipeline: {num_stages} stages with layers {parts}, schedule {manager.pp_schedule}")
        return mine

    def _build_pipeline(self, model: nn.Module, ranges: list[StageRange]) -> Pipeline:
        param_dtype = parse_mp_policy(self.manager.mp_policy).param_dtype
        return Pipeline(
            model,
            ranges,
            num_stages=self.dims.pp * self.manager.stages_per_rank,
            group=self.meshes.axes["pp"].get_group(),
            device=self.device,
            schedule=self.manager.pp_schedule,
            tied=self._tied_stages,
            dtype=param_dtype or next(model.parameters()).dtype,
        )

    def shard_sequence(self, batch: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of each sequence; see ``context_parallel.shard_sequence``.

        Under sequence parallelism, where the model itself cuts sequences, they are filled up to a length that divides.
        """
        if self._sequence is not None:
            shard = shard_vision_batch if self._sees_images else shard_sequence
            return shard(batch, self._sequence)
        return pad_sequences(batch, multiple=self.dims.tp) if self.manager.sequence_parallel else batch

    @contextmanager
    def whole_sequences(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model takes sequences of any length, whole on each rank, as generation does."""
        with ExitStack() as stack:
            if isinstance(model, FSDPModule):
                # generate() of vision-language models runs the vision tower before, and outside, the root's forward.
                model.unshard()
                stack.callback(model.reshard)
            if self._sequence is not None:
                stack.enter_context(own_attention(model, self._sequence))
            if self._tensor_group is not None:
                stack.enter_context(self._tensor_group.whole_sequences())
            if CompileConfig.parse(self.manager.compile).enabled:
                # Decoding meets a new length at every token: compiling for each would take longer than it runs.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    @property
    def parameter_device(self) -> torch.device:
        """Host memory under ``cpu_offload``, else the device."""
        return torch.device("cpu") if self.manager.cpu_offload else self.device

    @contextmanager
    def gradient_sync(self, model: nn.Module, *, enabled: bool) -> Iterator[None]:
        """Reduce over replicas (and, if deferred, over shards) only in the micro-batch where ``enabled``."""
        if isinstance(model, FSDPModule):
            if self.dims.dp_replicate > 1:
                model.set_requires_all_reduce(enabled)
            if self.manager.defer_gradient_sync:
                model.set_requires_gradient_sync(enabled)
            model.set_is_last_backward(enabled)
        yield
