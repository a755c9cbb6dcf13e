"""Sizes of the parallel axes, checked before anything loads, and the device mesh they span."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Mesh axes from the outermost to the innermost: neighbours in ``tp`` are neighbours in rank."""


SHARD_AXES = ("pp", "dp_replicate", "dp_shard_cp", "tp")
"""The same ranks as seen by parameters, which FSDP2 shards over data and context ranks alike."""


@dataclass(frozen=True)
class Meshes:
    """The process groups of a run."""

    axes: DeviceMesh
    """Over ``AXES``, those of size 1 included."""
    dp: DeviceMesh
    """Ranks that read different rows."""
    loss: DeviceMesh
    """Ranks that hold different label tokens: ``dp x cp``."""
    shard: DeviceMesh
    """Over ``SHARD_AXES``: where DTensors live. FSDP2 and TP need one common parent mesh."""


@dataclass(frozen=True)
class ParallelDims:
    """How many ranks each axis has. The product of ``AXES`` is the world size; ``ep`` lies inside ``dp_shard x cp``."""

    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    ep: int
    world_size: int

    @classmethod
    def derive(
        cls,
        *,
        world_size: int,
        dp_size: int | str | None = None,
        dp_replicate_size: int | str | None = None,
        tp_size: int | str | None = None,
        cp_size: int | str | None = None,
        pp_size: int | str | None = None,
        ep_size: int | str | None = None,
    ) -> ParallelDims:
        """Fill in the sizes that are left open and check that they multiply to the world size.

        Args:
            world_size: number of processes.
            dp_size: data ranks, ``dp_replicate x dp_shard``; None or ``"none"``: what the other axes leave.
            dp_replicate_size: groups of ranks that hold whole copies of the shards (HSDP); open means 1.
            tp_size, cp_size, pp_size, ep_size: tensor, context, pipeline and expert ranks; open means 1.

        Raises: ValueError: a size below 1, or sizes that do not factor the world size.
        """
        given = {"dp_replicate": dp_replicate_size, "tp": tp_size, "cp": cp_size, "pp": pp_size, "ep": ep_size}
        sizes = {name: _size(name, value) or 1 for name, value in given.items()}
        model_parallel = sizes["tp"] * sizes["cp"] * sizes["pp"]
        dp = _size("dp", dp_size) or max(world_size // model_parallel, 1)
        if dp * model_parallel != world_size:
            raise ValueError(
                f"dp {dp} x tp {sizes['tp']} x cp {sizes['cp']} x pp {sizes['pp']} = {dp * model_parallel} ranks, but "
                f"the world size is {world_size}: the product must equal it. Change the sizes (dp_size: none derives "
                "it), or --nproc-per-node."
            )
        if dp % sizes["dp_replicate"]:
            raise ValueError(
                f"dp_replicate_size={sizes['dp_replicate']} with dp_size={dp}: it must divide dp_size. Choose one of "
                f"{_divisors(dp)}."
            )
        dp_shard = dp // sizes.pop("dp_replicate")
        shards = dp_shard * sizes["cp"]
        if shards % sizes["ep"]:
            raise ValueError(
                f"ep_size={sizes['ep']} with {shards} sharding ranks (dp_shard {dp_shard} x cp {sizes['cp']}): experts "
                f"are spread over those ranks, so it must divide them. Choose one of {_divisors(shards)}."
            )
        return cls(dp_replicate=dp // dp_shard, dp_shard=dp_shard, world_size=world_size, **sizes)

    @property
    def dp(self) -> int:
        """Data ranks: each sees its own part of the global batch."""
        return self.dp_replicate * self.dp_shard

    def build_meshes(self, device_type: str) -> Meshes:
        """Create the process groups of every axis; each rank of the run must call it."""
        axes = init_device_mesh(device_type, tuple(getattr(self, axis) for axis in AXES), mesh_dim_names=AXES)
        shards = (self.pp, self.dp_replicate, self.dp_shard * self.cp, self.tp)
        return Meshes(
            axes=axes,
            dp=axes["dp_replicate", "dp_shard"]._flatten("dp"),
            loss=axes["dp_replicate", "dp_shard", "cp"]._flatten("loss"),
            shard=init_device_mesh(device_type, shards, mesh_dim_names=SHARD_AXES),
        )

    def describe(self) -> str:
        """Axes larger than 1, as ``dp_shard 2 x tp 2``; ``1 process`` when there is none."""
        sizes = [(axis, getattr(self, axis)) for axis in (*AXES, "ep")]
        return " x ".join(f"{axis} {size}" for axis, size in sizes if size > 1) or "1 process"


def _size(axis: str, value: int | str | None) -> int | None:
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{axis}_size={value!r}: it must be a whole number >= 1, or none to derive it. Change it.")
    return value


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
