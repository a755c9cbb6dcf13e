"""NeMo Automodel's YAML: the same sections as ours, other targets and a few other keys."""

from automodel_core.config.tree import Leaf, Sequence, Table, find, join, walk
from automodel_recipes.migrate.draft import Draft
from automodel_recipes.migrate.nemo_tables import MOVED, RECIPES, TARGETS, WITHOUT_EFFECT
from automodel_recipes.schema import RECIPES as OURS

PACKAGE = "nemo_automodel."
_DATA = ("dataset", "validation_dataset")
_LOADERS = ("dataloader", "validation_dataloader")
_PACKINGS = {"thd": "sequential", "neat": "bfd"}


def is_nemo(root: Table) -> bool:
    """Whether a target, a collate function or the recipe is NeMo Automodel's."""
    values = [tree.value for _, tree in walk(root) if isinstance(tree, Leaf) and isinstance(tree.value, str)]
    return any(value.startswith(PACKAGE) or value in RECIPES for value in values)


def from_nemo(source: Draft) -> Draft:
    """Rewrite in place, in an order in which later steps see our names."""
    _functions_as_targets(source)
    _datasets_ignore_alike(source)
    for path, reason in WITHOUT_EFFECT.items():
        if "." in path or path not in OURS["LLMFinetuneRecipe"]:
            source.drop(path, reason)
    for old, new in MOVED.items():
        source.move(old, new)
    _sizes(source)
    _parallel(source)
    _values(source)
    _fp8(source)
    _quantization(source)
    _compile(source)
    _qat(source)
    _targets(source)
    _recipe(source)
    return source


def _functions_as_targets(draft: Draft) -> None:
    """``collate_fn: package.function`` is a target by name alone."""
    for loader in _LOADERS:
        path = f"{loader}.collate_fn"
        if isinstance(name := draft.get(path), str):
            draft.replace(path, {"_target_": name}, "is a _target_ of its own")


def _datasets_ignore_alike(draft: Draft) -> None:
    for path, reason in WITHOUT_EFFECT.items():
        section, _, key = path.partition(".")
        if section in ("dataset", "dataloader") and key:
            draft.drop(f"validation_{section}.{key}", reason)
    for loader, dataset in zip(_LOADERS, _DATA):
        draft.move(f"{loader}.collate_fn.max_length", f"{dataset}.seq_length", "rows are cut before they are batched")


def _sizes(draft: Draft) -> None:
    draft.move("dataloader.batch_size", "step_scheduler.local_batch_size", "rows per micro-batch")
    if draft.get("step_scheduler.local_batch_size") is not None:
        return
    scheduler = draft.table("step_scheduler")
    if scheduler is not None and draft.get("step_scheduler.grad_acc_steps") is not None:
        draft.add("step_scheduler.local_batch_size", 1, scheduler.source)


def _parallel(draft: Draft) -> None:
    if draft.get("distributed.use_hf_tp_plan") is True:
        draft.replace("distributed.use_hf_tp_plan", "hf", "is the value `hf`")
        draft.move("distributed.use_hf_tp_plan", "distributed.tp_plan")
    draft.drop("distributed.use_hf_tp_plan", "false is the default of tp_plan")
    strategy, target = draft.get("distributed.strategy"), str(draft.get("distributed._target_") or "")
    if strategy == "megatron_fsdp":
        draft.replace("distributed.strategy", "megatron_fsdp", "is the _target_ megatron_fsdp")
        draft.move("distributed.strategy", "distributed._target_")
    if strategy in ("ddp", "megatron_fsdp") or target.endswith(("DDPManager", "FSDPManager")):
        for key in ("tp_size", "cp_size", "pp_size", "ep_size", "dp_replicate_size"):
            if draft.get(f"distributed.{key}") in (1, None, "none", "None"):
                draft.drop(f"distributed.{key}", "this strategy has no such axis, and a size of 1 is none")
    for key in ("dp_size", "dp_replicate_size", "tp_size", "cp_size"):
        if draft.get(f"distributed.{key}") == "None":
            draft.replace(f"distributed.{key}", None, "is null")


def _values(draft: Draft) -> None:
    if draft.get("seed") is not None:
        draft.drop("rng.seed", "the top-level seed is the one that counts")
    strategy = draft.get("packed_sequence.strategy")
    if strategy in _PACKINGS:
        draft.replace("packed_sequence.strategy", _PACKINGS[strategy], f"{strategy} is {_PACKINGS[strategy]} here")
    if draft.get("checkpoint.best_metric_key") == "default":
        draft.replace("checkpoint.best_metric_key", "val", "the unnamed validation set is val")
    sizes = draft.get("model.sdpa_method")
    if isinstance(sizes, Sequence) and not sizes.items:
        draft.drop("model.sdpa_method", "an empty list chooses nothing")


def _fp8(draft: Draft) -> None:
    """Our section holds their keys; under LoRA it can only store the frozen base, row by row."""
    section = draft.table("fp8")
    if section is None:
        return
    draft.drop("fp8._target_", "the section is keys only here")
    if draft.get("fp8.enabled") is False:
        draft.drop("fp8", "it is switched off")
    elif find(draft.root, "peft") is not None and draft.get("fp8.recipe_name") != "rowwise":
        draft.drop("fp8.emulate", "FP8 products of a frozen base run on every device")
        draft.add("fp8.recipe_name", "tensorwise", section.source)
        draft.replace("fp8.recipe_name", "rowwise", "under LoRA the frozen base is stored with a scale for every row")


def _quantization(draft: Draft) -> None:
    if draft.table("quantization") is None:
        return
    draft.drop("quantization._target_", "the section is keys only here")
    if not any(draft.get(f"quantization.{bits}") is True for bits in ("load_in_4bit", "load_in_8bit")):
        draft.drop("quantization", "it is switched off")
        return
    for key in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        dtype = draft.get(f"quantization.{key}")
        if isinstance(dtype, str) and dtype.startswith("torch."):
            draft.replace(f"quantization.{key}", dtype.removeprefix("torch."), "dtypes go by their plain names")


def _compile(draft: Draft) -> None:
    if draft.get("autopipeline.enabled") is False:
        draft.drop("autopipeline", "it is switched off")
    if draft.table("compile") is None:
        return
    if draft.get("compile.enabled") in (False, None):
        draft.drop("compile", "it is switched off")
        return


def _qat(draft: Draft) -> None:
    if draft.table("qat") is None:
        return
    if draft.get("qat.enabled") is False:
        draft.drop("qat", "it is switched off")
        return
    draft.drop("qat.enabled", "the section's presence says so")
    if isinstance(draft.get("qat.qat_config"), str):
        draft.move("qat.qat_config", "qat.scheme")
        return
    draft.move("qat.qat_config.groupsize", "qat.group_size")
    draft.move("qat.qat_config.quantizer_type", "qat.scheme")


def _targets(draft: Draft) -> None:
    for path, tree in list(walk(draft.root)):
        if not isinstance(tree, Leaf) or not isinstance(tree.value, str) or not tree.value.startswith(PACKAGE):
            continue
        parts = tree.value.split(".")
        name = ".".join(parts[-2:]) if parts[-1] in ("from_pretrained", "from_config") else parts[-1]
        if path == "recipe":
            continue
        if name in TARGETS:
            draft.replace(path, TARGETS[name], f"{name} is {TARGETS[name]}")
        else:
            draft.unknown(path, f"{tree.value!r} has no counterpart here; name one of ours, see `config explain`")


def _recipe(draft: Draft) -> None:
    """The named recipe, or the one that the sections imply."""
    named = draft.get("recipe")
    if isinstance(named, str):
        short = named.rpartition(".")[2]
        if short in RECIPES:
            draft.replace("recipe", RECIPES[short], f"{short} is {RECIPES[short]}")
        elif short not in OURS:
            draft.unknown("recipe", f"{named!r} has no counterpart here; there are {', '.join(OURS)}")
        return
    draft.drop("recipe", "it is empty")
    target = str(draft.get("model._target_") or "")
    takes_images = "ImageTextToText" in target or find(draft.root, "processor") is not None
    if find(draft.root, "teacher_model") is not None:
        recipe = "VLMKnowledgeDistillationRecipe" if takes_images else "KnowledgeDistillationRecipe"
    else:
        recipe = "VLMFinetuneRecipe" if takes_images else "LLMFinetuneRecipe"
    draft.add(join("", "recipe"), recipe, draft.root.source)
