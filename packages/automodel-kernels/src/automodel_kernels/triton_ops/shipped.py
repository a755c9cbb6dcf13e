"""The configurations that ship: what the ahead-of-time gate compiles, as the launchers would specialise them.

Shapes follow an 8B Llama: H 4096, I 14336, V 128256, 32 + 8 heads of 128, rank 16, bfloat16.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from automodel_kernels.triton_ops import cross_entropy, glu, lora, rms_norm, rope
from automodel_kernels.triton_ops.common import num_warps_for


@dataclass(frozen=True)
class Shipped:
    """One kernel with its argument types and compile-time constants."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    unaligned: tuple[str, ...] = ()
    """Integer arguments that are not multiples of 16."""
    num_warps: int = 4
    tensor_cores: bool = False
    wide_loads: bool = True
    """Whether 128-bit loads are demanded."""


def shipped() -> Iterator[Shipped]:
    """Yield every shipped configuration."""
    yield from _cross_entropy()
    yield from _rms_norm()
    yield _rope()
    yield from _glu()
    yield from _lora()


def _cross_entropy() -> Iterator[Shipped]:
    for cap in (False, True):
        suffix = " softcap" if cap else ""
        yield Shipped(
            f"cross_entropy stats{suffix}",
            cross_entropy.stats_kernel,
            _types("logits:*bf16 labels:*i64 peak_out:*fp32 total_out:*fp32 label_out:*fp32 sum_out:*fp32"
                   " row_stride:i32 num_classes:i32 ignore_index:i64 softcap:fp32"),
            {"HAS_CAP": cap, "BLOCK": 4096},
            unaligned=("ignore_index",),
            num_warps=8,
        )  # fmt: skip
        yield Shipped(
            f"cross_entropy gradient{suffix}",
            cross_entropy.grad_kernel,
            _types("logits:*bf16 grad:*bf16 labels:*i64 lse:*fp32 scale:*fp32 row_stride:i32 grad_row_stride:i32"
                   " num_classes:i32 softcap:fp32 z_loss:fp32 smoothing:fp32"),
            {"HAS_CAP": cap, "BLOCK": 4096},
            num_warps=8,
        )  # fmt: skip


def _rms_norm() -> Iterator[Shipped]:
    for gemma in (False, True):
        for fused, hidden_size in ((False, 4096), (True, 4096), (False, 128)):
            rows, block = rms_norm.tile(hidden_size)
            flag = f"{' gemma' if gemma else ''}{' residual' if fused else ''} H{block}"
            yield Shipped(
                f"rms_norm forward{flag}",
                rms_norm.forward_kernel,
                _types("x:*bf16 residual:*bf16 weight:*bf16 y:*bf16 total_out:*bf16 rstd_out:*fp32 x_stride:i32"
                       " residual_stride:i32 num_rows:i32 H:i32 eps:fp32"),
                {"HAS_RESIDUAL": fused, "GEMMA": gemma, "ROWS": rows, "BLOCK": block},
                num_warps=num_warps_for(rows * block),
            )  # fmt: skip
            yield Shipped(
                f"rms_norm backward{flag}",
                rms_norm.backward_kernel,
                _types("dy:*bf16 d_total:*bf16 total:*bf16 weight:*bf16 rstd_in:*fp32 dx:*bf16 dw_partial:*fp32"
                       " dy_stride:i32 d_total_stride:i32 total_stride:i32 num_rows:i32 H:i32"),
                {"HAS_D_TOTAL": fused, "GEMMA": gemma, "ROWS": rows, "BLOCK": block},
                num_warps=num_warps_for(rows * block),
            )  # fmt: skip


def _rope() -> Shipped:
    strides = " ".join(f"{x}_{dim}:i32" for x in ("q", "k", "qo", "ko") for dim in ("batch", "head", "token"))
    return Shipped(
        "rope",
        rope.rope_kernel,
        _types(f"q:*bf16 k:*bf16 q_out:*bf16 k_out:*bf16 cos:*bf16 sin:*bf16 {strides} angle_batch:i32 angle_token:i32"
               " T:i32 half:i32 D:i32 q_heads:i32 k_heads:i32 direction:fp32"),
        {"Q_HEADS": 32, "K_HEADS": 8, "HALF": 64, "REST": 0},
        unaligned=("k_heads",),
    )  # fmt: skip


def _glu() -> Iterator[Shipped]:
    for kind, number in glu.KINDS.items():
        yield Shipped(
            f"glu forward {kind}",
            glu.forward_kernel,
            _types("gate:*bf16 up:*bf16 out:*bf16 gate_stride:i32 up_stride:i32 width:i32"),
            {"KIND": number, "BLOCK": 1024},
        )
        yield Shipped(
            f"glu backward {kind}",
            glu.backward_kernel,
            _types(
                "dh:*bf16 gate:*bf16 up:*bf16 dg:*bf16 du:*bf16 dh_stride:i32 gate_stride:i32 up_stride:i32 width:i32"
            ),
            {"KIND": number, "BLOCK": 1024},
        )


def _lora() -> Iterator[Shipped]:
    for rank in (16, 64):
        yield Shipped(
            f"lora shrink r{rank}",
            lora.shrink_kernel,
            _types("x:*bf16 a:*bf16 s:*bf16 x_stride:i32 a_rank:i32 num_rows:i32 K:i32 rank:i32"),
            {"a_in": 1, "BLOCK_M": lora.SHRINK_TILE[0], "BLOCK_K": lora.SHRINK_TILE[1], "RANK": rank},
            tensor_cores=True,
        )
        yield Shipped(
            f"lora add_expand r{rank}",
            lora.add_expand_kernel,
            _types("y:*bf16 s:*bf16 b:*bf16 y_stride:i32 s_stride:i32 b_out:i32 num_rows:i32 num_out:i32 rank:i32"
                   " scaling:fp32"),
            {"b_rank": 1, "BLOCK_M": lora.EXPAND_TILE[0], "BLOCK_N": lora.EXPAND_TILE[1], "RANK": rank},
            tensor_cores=True,
        )  # fmt: skip


def _types(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())
