"""The forms that differ from ours by names: a hierarchical one, TRL's and axolotl's."""

from typing import Any

from automodel_core.config.tree import Sequence, Table, find
from automodel_recipes.migrate.draft import Draft, to_plain
from automodel_recipes.migrate.flat import FlatDialect, To

_LOAD = "automodel_core.NeMoAutoModelForCausalLM.from_pretrained"
_LOAD_VLM = "automodel_core.NeMoAutoModelForImageTextToText.from_pretrained"
_STYLES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
_OPTIMIZERS = {
    "adamw_torch": "torch.optim.AdamW",
    "adamw_torch_fused": "torch.optim.AdamW",
    "adamw": "torch.optim.AdamW",
    "adam": "torch.optim.Adam",
    "sgd": "torch.optim.SGD",
    "adamw_bnb_8bit": "bitsandbytes.optim.AdamW8bit",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
}
_DATASETS = {
    name: name
    for name in "chat column_mapped hellaswag squad mock text_pretrain rdr cord_v2 medpix cv17 llava_style".split()
} | {"alpaca": "chat", "chat_template": "chat", "sharegpt": "chat", "completion": "text_pretrain"}


def _style(name: Any) -> Any:
    return _STYLES[str(name)]


def _optimizer(name: Any) -> Any:
    return _OPTIMIZERS[str(name)]


def _dataset(name: Any) -> Any:
    return _DATASETS[str(name)]


def _modules(names: Any) -> Any:
    return [] if names == "all-linear" else names


def _finish(result: Draft, source: Draft) -> None:
    """What our form needs and theirs implies."""
    where = source.root.source
    result.add("recipe", "LLMFinetuneRecipe", where)
    result.add("model._target_", _LOAD, where)
    if find(result.root, "dataset") is not None:
        result.add("dataset._target_", "chat", where)
    if find(result.root, "validation_dataset") is not None:
        result.add("validation_dataset._target_", result.get("dataset._target_") or "chat", where)
    if find(result.root, "peft") is not None:
        result.add("peft._target_", "lora", where)
        result.add("peft.dropout_position", "pre", where)  # where the peft library drops
    if find(result.root, "optimizer") is not None:
        result.add("optimizer._target_", "torch.optim.AdamW", where)


_HIERARCHICAL_KEYS = {
    "seed": To("seed"),
    "model.name": To("model.pretrained_model_name_or_path"),
    "model.dtype": To("model.dtype"),
    "model.torch_dtype": To("model.dtype"),
    "model.attn_implementation": To("model.attn_implementation"),
    "data.dataset_type": To("dataset._target_", _dataset),
    "data.path": To("dataset.path_or_dataset_id"),
    "data.dataset_path": To("dataset.path_or_dataset_id"),
    "data.dataset_name": To("dataset.path_or_dataset_id"),
    "data.split": To("dataset.split"),
    "data.validation_path": To("validation_dataset.path_or_dataset_id"),
    "data.max_length": To("dataset.seq_length"),
    "data.max_seq_length": To("dataset.seq_length"),
    "data.seq_length": To("dataset.seq_length"),
    "data.column_mapping": To("dataset.column_mapping"),
    "data.packed_sequence_size": To("packed_sequence.packed_sequence_size"),
    "data.batch_size": To("step_scheduler.local_batch_size"),
    "data.num_workers": To("dataloader.num_workers"),
    "data.shuffle": To("dataloader.shuffle"),
    "training.seed": To("seed"),
    "training.optimizer": To("optimizer._target_", _optimizer),
    "training.learning_rate": To("optimizer.lr"),
    "training.weight_decay": To("optimizer.weight_decay"),
    "training.batch_size": To("step_scheduler.local_batch_size"),
    "training.micro_batch_size": To("step_scheduler.local_batch_size"),
    "training.global_batch_size": To("step_scheduler.global_batch_size"),
    "training.gradient_accumulation_steps": To("step_scheduler.grad_acc_steps"),
    "training.num_epochs": To("step_scheduler.num_epochs"),
    "training.max_steps": To("step_scheduler.max_steps"),
    "training.save_steps": To("step_scheduler.ckpt_every_steps"),
    "training.checkpoint_interval": To("step_scheduler.ckpt_every_steps"),
    "training.eval_steps": To("step_scheduler.val_every_steps"),
    "training.val_interval": To("step_scheduler.val_every_steps"),
    "training.log_interval": To("step_scheduler.log_every_steps"),
    "training.max_grad_norm": To("clip_grad_norm.max_norm"),
    "training.gradient_clipping": To("clip_grad_norm.max_norm"),
    "training.lr_scheduler": To("lr_scheduler.lr_decay_style", _style),
    "training.warmup_steps": To("lr_scheduler.lr_warmup_steps"),
    "training.min_lr": To("lr_scheduler.min_lr"),
    "training.output_dir": To("checkpoint.checkpoint_dir"),
    "distributed.strategy": To("distributed.strategy"),
    "distributed.data_parallel_size": To("distributed.dp_size"),
    "distributed.tensor_parallel_size": To("distributed.tp_size"),
    "distributed.context_parallel_size": To("distributed.cp_size"),
    "distributed.pipeline_parallel_size": To("distributed.pp_size"),
    "distributed.sequence_parallel": To("distributed.sequence_parallel"),
    "distributed.backend": To("dist_env.backend"),
    "checkpoint.enabled": To("checkpoint.enabled"),
    "checkpoint.dir": To("checkpoint.checkpoint_dir"),
    "checkpoint.checkpoint_dir": To("checkpoint.checkpoint_dir"),
    "checkpoint.save_interval": To("step_scheduler.ckpt_every_steps"),
    **{
        f"{section}.{theirs}": To(f"peft.{ours}")
        for section in ("peft", "lora")
        for theirs, ours in {
            "dim": "dim",
            "rank": "dim",
            "r": "dim",
            "alpha": "alpha",
            "dropout": "dropout",
            "target_modules": "target_modules",
        }.items()
    },
}


def _overrides(draft: Draft) -> None:
    """``model.config_overrides`` are keywords of from_pretrained; ``model.type: vlm`` is another recipe."""
    table = draft.table("model.config_overrides")
    for key in list(table.entries) if table is not None else []:
        draft.move(f"model.config_overrides.{key}", f"model.{key}", "a keyword of from_pretrained")
    draft.drop("model.config_overrides", "it is empty") if table is not None else None
    for section in ("peft", "lora"):
        draft.drop(f"{section}.type", "LoRA is what the section means")
        draft.drop(f"{section}.enabled", "the section's presence says so")


def _keep_overrides(result: Draft, source: Draft) -> None:
    """Config overrides go through as they are; the base class decides whether it knows them."""
    model = source.table("model")
    moved = {note.path.rpartition(".")[2] for note in source.notes if note.path.startswith("model.config_overrides.")}
    for key in moved & set(model.entries if model is not None else ()):
        entry = source._take(f"model.{key}")
        assert entry is not None, "it was just looked up"
        result.add(f"model.{key}", to_plain(entry.value), entry.key_source)
    source.notes[:] = [
        n for n in source.notes if not (n.outcome == "unknown" and n.path in {f"model.{k}" for k in moved})
    ]
    if str(source.get("model.type") or "").lower() == "vlm":
        result.add("recipe", "VLMFinetuneRecipe", source.root.source)
        result.add("model._target_", _LOAD_VLM, source.root.source)
    source.notes[:] = [n for n in source.notes if n.path != "model.type"]
    _finish(result, source)


HIERARCHICAL = FlatDialect("hierarchical", _HIERARCHICAL_KEYS, before=_overrides, after=_keep_overrides)

_PRECISION = "the weights' dtype is model.dtype; compute dtypes are distributed.mp_policy"
_LOADED = "attention is chosen by model.attn_implementation"
_LORA = {
    "lora_r": To("peft.dim"),
    "lora_alpha": To("peft.alpha"),
    "lora_dropout": To("peft.dropout"),
    "lora_target_modules": To("peft.target_modules", _modules),
    "lora_modules_to_save": To("peft.modules_to_save"),
    "use_rslora": To("peft.use_rslora"),
    "use_dora": To("peft.use_dora"),
}
_HF_TRAINER = {
    **{f"wandb_{key}": To(f"wandb.{key}") for key in ("project", "entity", "name")},
    "seed": To("seed"),
    "learning_rate": To("optimizer.lr"),
    "weight_decay": To("optimizer.weight_decay"),
    "max_grad_norm": To("clip_grad_norm.max_norm"),
    "max_steps": To("step_scheduler.max_steps", lambda steps: steps if steps > 0 else {}[steps]),
    "gradient_accumulation_steps": To("step_scheduler.grad_acc_steps"),
    "warmup_steps": To("lr_scheduler.lr_warmup_steps"),
    "logging_steps": To("step_scheduler.log_every_steps"),
    "save_steps": To("step_scheduler.ckpt_every_steps"),
    "eval_steps": To("step_scheduler.val_every_steps"),
    "output_dir": To("checkpoint.checkpoint_dir"),
    "save_total_limit": To("checkpoint.max_recent_checkpoints"),
    "attn_implementation": To("model.attn_implementation"),
    "load_in_4bit": To("quantization.load_in_4bit"),
    "load_in_8bit": To("quantization.load_in_8bit"),
}
_HF_IGNORED = {
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "tf32": "torch's own setting is kept",
    "report_to": "a wandb, tensorboard or mlflow section says so",
    "run_name": "the run's directory names it",
    "logging_strategy": "the step counts decide",
    "save_strategy": "the step counts decide",
    "eval_strategy": "the step counts decide",
    "push_to_hub": "nothing is uploaded by training",
    "wandb_watch": "gradient norms are logged in any case",
    "wandb_log_model": "`automodel-recipes ckpt push` uploads weights",
}


def _trl_pairs(draft: Draft) -> None:
    """Settings that are switches there and sections here."""
    if draft.get("use_peft") is False:
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            draft.drop(key, "use_peft is false")
    draft.drop("use_peft", "the peft section says so")
    if draft.get("packing") is True:
        length = draft.get("max_length") or draft.get("max_seq_length") or 1024
        draft.replace("packing", length, "packs are as long as the longest row")
        draft.move("packing", "packed_sequence.packed_sequence_size")
    draft.drop("packing", "it is switched off")
    draft.drop("gradient_checkpointing", "set distributed.activation_checkpointing: true with strategy fsdp2")


TRL = FlatDialect(
    "TRL",
    {
        **_HF_TRAINER,
        **_LORA,
        "model_name_or_path": To("model.pretrained_model_name_or_path"),
        "model_revision": To("model.revision"),
        "torch_dtype": To("model.dtype"),
        "dtype": To("model.dtype"),
        "dataset_name": To("dataset.path_or_dataset_id"),
        "dataset_config": To("dataset.name"),
        "dataset_train_split": To("dataset.split"),
        "max_length": To("dataset.seq_length"),
        "max_seq_length": To("dataset.seq_length"),
        "packed_sequence.packed_sequence_size": To("packed_sequence.packed_sequence_size"),
        "num_train_epochs": To("step_scheduler.num_epochs", int),
        "per_device_train_batch_size": To("step_scheduler.local_batch_size"),
        "per_device_eval_batch_size": To("validation_dataloader.batch_size"),
        "dataloader_num_workers": To("dataloader.num_workers"),
        "lr_scheduler_type": To("lr_scheduler.lr_decay_style", _style),
        "optim": To("optimizer._target_", _optimizer),
    },
    {**_HF_IGNORED, "dataset_num_proc": "rows are tokenised as they are read"},
    before=_trl_pairs,
    after=_finish,
)


def _axolotl_pairs(draft: Draft) -> None:
    """One entry of ``datasets`` becomes ``dataset``; several stay, and are reported."""
    datasets = draft.get("datasets")
    if isinstance(datasets, Sequence) and len(datasets.items) == 1 and isinstance(datasets.items[0], Table):
        item = datasets.items[0]
        draft.replace("datasets", item, "one data set")
        for key in ("path", "type", "split", "name"):
            draft.move(f"datasets.{key}", f"dataset_{key}")
        if not item.entries:
            draft.drop("datasets", "all of it is in dataset")
    draft.move("special_tokens.additional_special_tokens", "added_special_tokens")
    if draft.get("sample_packing") is True:
        draft.replace("sample_packing", draft.get("sequence_len") or 2048, "packs are sequence_len long")
        draft.move("sample_packing", "packed_size")
    draft.drop("sample_packing", "it is switched off")
    if draft.get("lora_target_linear") is True and draft.get("lora_target_modules") is None:
        draft.replace("lora_target_linear", "all-linear", "every linear layer")
        draft.move("lora_target_linear", "lora_target_modules")
    draft.drop("lora_target_linear", "lora_target_modules names the layers")
    draft.drop("gradient_checkpointing", "set distributed.activation_checkpointing: true with strategy fsdp2")


AXOLOTL = FlatDialect(
    "axolotl",
    {
        **_HF_TRAINER,
        **_LORA,
        "base_model": To("model.pretrained_model_name_or_path"),
        "revision_of_model": To("model.revision"),
        "torch_dtype": To("model.dtype"),
        "dataset_path": To("dataset.path_or_dataset_id"),
        "dataset_type": To("dataset._target_", _dataset),
        "dataset_split": To("dataset.split"),
        "dataset_name": To("dataset.name"),
        "sequence_len": To("dataset.seq_length"),
        "packed_size": To("packed_sequence.packed_sequence_size"),
        "num_epochs": To("step_scheduler.num_epochs", int),
        "micro_batch_size": To("step_scheduler.local_batch_size"),
        "lr_scheduler": To("lr_scheduler.lr_decay_style", _style),
        "optimizer": To("optimizer._target_", _optimizer),
        "lora_use_dora": To("peft.use_dora"),
        "tokens": To("tokenizer.add_tokens"),
        "added_special_tokens": To("tokenizer.add_special_tokens"),
    },
    {
        **_HF_IGNORED,
        "adapter": "the peft section says so",
        "model_type": "the model's own configuration says which class it is",
        "tokenizer_type": "the tokenizer's own files say which class it is",
        "flash_attention": _LOADED,
        "sdp_attention": _LOADED,
        "xformers_attention": _LOADED,
        "pad_to_sequence_len": "rows are padded by the batch",
        "train_on_inputs": "answers alone are trained; dataset.mask changes that",
        "group_by_length": "batches follow the seeded order",
        "strict": "unknown keys are always errors",
        "special_tokens": "the tokenizer's own are used",
        "dataset_prepared_path": "tokenised rows are cached by content",
        "eval_sample_packing": "validation rows are never packed",
    },
    before=_axolotl_pairs,
    after=_finish,
)
