"""The weights of a model whose layers lie on several pipeline stages, as one Hugging Face or PEFT directory."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from automodel_recipes.errors import RecipeError

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe


def write_stage_weights(r: "BaseRecipe", target: Path, **keys: Any) -> Path:
    """As ``weights.write_weights``; no rank ever holds the whole model. Every rank calls it."""
    if r.built.peft is not None:
        from automodel_ckpt import save_adapter

        return save_adapter(target, _whole_adapter(r), r.built.adapter_config, **keys)
    return _write_model(r, target, **keys)


def _write_model(r: "BaseRecipe", target: Path, *, tokenizer: Any, processor: Any, overwrite: bool) -> Path:
    """Each rank writes its shards, from which rank 0 makes the directory tensor by tensor."""
    from automodel_ckpt import CheckpointError, save

    place = r.run_dir.path / ".stages"  # one level down: a save in the background sweeps the run's own level
    save(place / "shards", {"model": r.unwrapped()}, step=r.step_scheduler.step)
    failure: Exception | None = None
    if r.parallel.is_main:
        try:
            _join(r, place, target, tokenizer=tokenizer, processor=processor, overwrite=overwrite)
        except (CheckpointError, OSError, ValueError) as error:
            failure = error
        finally:
            shutil.rmtree(place, ignore_errors=True)
    if r.parallel.any_rank(failure is not None):
        raise failure or RecipeError(f"{target} could not be written; rank 0 says why. Look at its message.")
    return target


def _join(r: "BaseRecipe", place: Path, target: Path, *, tokenizer: Any, processor: Any, overwrite: bool) -> None:
    from automodel_ckpt import consolidate
    from automodel_ckpt.hf.assets import write_assets, write_model_config
    from automodel_ckpt.lease import release

    model = r.unwrapped()
    assets = place / "assets"
    assets.mkdir()
    write_model_config(assets, model, dtype=str(model.dtype).removeprefix("torch."), untie=False)
    write_assets(assets, tokenizer=tokenizer, processor=processor)
    consolidate(place / "shards", target, assets=assets, overwrite=overwrite)
    release(place / "shards")


def _whole_adapter(r: "BaseRecipe") -> dict[str, torch.Tensor]:
    """The adapter tensors of all stages on the first one, on the CPU; elsewhere those of the own stage."""
    from automodel_core.peft import adapter_state_dict

    model = r.unwrapped()
    own: dict[str, torch.Tensor] = {}
    if any(parameter.requires_grad for parameter in model.parameters()):
        own = {name: tensor.cpu() for name, tensor in adapter_state_dict(model).items()}
    group = r.parallel.mesh["pp"].get_group()
    parts: list[Any] = [None] * group.size()
    dist.all_gather_object(parts, own, group=group)
    return {name: tensor for part in parts for name, tensor in part.items()}
