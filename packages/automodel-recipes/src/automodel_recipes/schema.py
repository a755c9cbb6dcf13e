"""What a configuration may hold: the sections of every recipe, declared once.

A new section is one line in a table here. Validation, ``config schema``, ``config explain`` and editors read it. Keys
that are handed on to a class or function are not repeated: ``takes`` names whose keywords they are, and the keywords
are read from its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """One key: what may stand there (JSON Schema) and what it means."""

    schema: Schema
    doc: str


@dataclass(frozen=True)
class Section:
    """One top-level key of a configuration."""

    doc: str
    kind: str | None = None
    """The kind of ``_target_`` that may stand here (see ``automodel_core.config.kinds``); None: keys only."""
    keys: Mapping[str, Key] = field(default_factory=dict)
    """Keys that the recipe reads itself."""
    takes: tuple[str, ...] = ()
    """``module:name`` of what the other keys are passed to."""
    runtime: tuple[str, ...] = ()
    """Keywords that the recipe supplies and the YAML must not (``params``)."""
    offers: tuple[str, ...] = ()
    """Keywords that the recipe supplies where the YAML does not (``tokenizer``)."""
    required: bool = False
    is_list: bool = False
    value: Schema | None = None
    """For a top-level key that is one value."""


def _whole(doc: str, minimum: int | None = None) -> Key:
    return Key({"type": "integer"} if minimum is None else {"type": "integer", "minimum": minimum}, doc)


def _flag(doc: str) -> Key:
    return Key({"type": "boolean"}, doc)


def _text(doc: str) -> Key:
    return Key({"type": "string"}, doc)


_TOKENIZER_KEYS = {
    "pretrained_model_name_or_path": _text("Directory or hub id; the model's by default."),
    "gguf_file": _text("A GGUF file in that directory, whose tokenizer is used; the model's by default."),
    "revision": _text("Branch, tag or commit on the hub."),
    "subfolder": _text("Folder inside the repository."),
    "cache_dir": _text("Where downloads are kept."),
    "token": _text("Access token, by ${HF_TOKEN}."),
    "trust_remote_code": _flag("Run the repository's code; needs --trust-remote-code and a pinned revision."),
    "use_fast": _flag("Use the Rust tokenizer."),
    "add_bos_token": _flag("Put a begin-of-sequence token before every text."),
    "add_eos_token": _flag("Put an end-of-sequence token after every text."),
}

_ADDED_TOKENS = ("automodel_core.models:extend_tokenizer",)

_DATALOADER_KEYS = {
    "num_workers": _whole("Processes that read and tokenise ahead; 0 works in the training process.", 0),
    "pin_memory": _flag("Page-locked batches, for faster copies to a GPU."),
    "collate_fn": Key({"type": "object"}, "How rows become a batch."),
}

_DATASET = Section(
    "Validation rows; validation_dataset_NAME adds a set of that name.", kind="dataset", offers=("tokenizer",)
)

_LLM: dict[str, Section] = {
    "recipe": Section("Which recipe runs this configuration.", value={"type": "string"}),
    "seed": Section("Seeds weights, data order and dropout.", value={"type": "integer", "minimum": 0}),
    "rng": Section(
        "Seeds, in the longer form.",
        keys={"seed": _whole("As the top-level seed.", 0), "ranked": _flag("Another dropout stream on every rank.")},
    ),
    "device": Section("Where to train.", value={"enum": ["auto", "cpu", "cuda", "mps", "xpu"]}),
    "dist_env": Section(
        "How processes find one another.", takes=("automodel_parallel.init:init_distributed",), runtime=("device",)
    ),
    "step_scheduler": Section(
        "Batch sizes, epochs, and how often to validate and save.",
        keys={
            "log_every_steps": _whole("Steps between logged rows.", 1),
            "grad_acc_steps": _whole("Older form of global_batch_size: micro-batches per step and rank.", 1),
        },
        takes=("automodel_core.training:StepScheduler",),
        runtime=("dataloader", "dp_size"),
        offers=("local_batch_size",),
    ),
    "model": Section("The model to train.", kind="model", offers=("tokenizer",), required=True),
    "quantization": Section(
        "The frozen base in 4 or 8 bits by bitsandbytes, under LoRA (QLoRA).",
        keys={
            "load_in_4bit": _flag("Store linear layers in 4 bits."),
            "load_in_8bit": _flag("Store linear layers in 8 bits (LLM.int8)."),
            "bnb_4bit_quant_type": Key({"enum": ["nf4", "fp4"]}, "The 4-bit numbers; nf4 by default."),
            "bnb_4bit_compute_dtype": Key(
                {"enum": ["bfloat16", "float16", "float32"]},
                "What 4-bit weights are multiplied in; bfloat16 by default, float32 on a CPU.",
            ),
            "bnb_4bit_use_double_quant": _flag("Quantise the scales as well: 0.4 bits a parameter less; false."),
            "bnb_4bit_quant_storage": Key(
                {"enum": ["uint8", "bfloat16", "float16", "float32"]}, "The dtype that holds 4-bit codes; uint8."
            ),
            "llm_int8_threshold": Key({"type": "number", "minimum": 0}, "8 bits: larger activations stay in 16; 6.0."),
            "llm_int8_skip_modules": Key(
                {"type": "array", "items": {"type": "string"}}, "Modules that stay as they are; the head by default."
            ),
        },
    ),
    "freeze_config": Section(
        "Which parts stay as they are.", takes=("automodel_core.models:apply_freezing",), runtime=("model",)
    ),
    "peft": Section("LoRA and its relatives; without it every parameter is trained.", kind="peft"),
    "kernels": Section(
        "Fused kernels in place of the model's own layers.",
        takes=("automodel_kernels:patch_model_with_kernel_optimizations",),
        runtime=("model",),
    ),
    "fp8": Section(
        "Matrix products in FP8: of all trained linear layers, or of the frozen base under LoRA (rowwise).",
        takes=("automodel_kernels.fp8:FP8Config",),
    ),
    "compile": Section(
        "torch.compile of every block.",
        takes=("automodel_parallel.compile:CompileConfig",),
    ),
    "transforms": Section("Further edits of the model, in order.", kind="transform", runtime=("model",), is_list=True),
    "tokenizer": Section(
        "The tokenizer; the model's own by default.",
        kind="tokenizer",
        keys=_TOKENIZER_KEYS,
        takes=_ADDED_TOKENS,
        runtime=("tokenizer",),
    ),
    "distributed": Section(
        "How the work is split over processes.",
        kind="distributed",
        keys={
            "strategy": Key(
                {"enum": ["ddp", "fsdp2", "megatron_fsdp", "none"]},
                "Whole copies, or shards by PyTorch or by NVIDIA's megatron-fsdp.",
            )
        },
        takes=(
            "automodel_parallel:DDPManager",
            "automodel_parallel:FSDP2Manager",
            "automodel_parallel:MegatronFSDPManager",
        ),
    ),
    "loss_fn": Section("The loss; masked cross-entropy by default.", kind="loss_fn"),
    "dataset": Section("Training rows.", kind="dataset", offers=("tokenizer",), required=True),
    "packed_sequence": Section(
        "Several short documents in one row, isolated from one another.",
        takes=("automodel_data:PackedSequence",),
        runtime=("dataset",),
    ),
    "dataloader": Section(
        "How training rows are read.",
        keys={
            **_DATALOADER_KEYS,
            "shuffle": _flag("A new order every epoch, decided by the seed."),
            "shuffle_block": _whole("Rows of a stream that are shuffled among themselves; 4096 by default.", 1),
        },
    ),
    "validation_dataset": _DATASET,
    "validation_dataloader": Section(
        "How validation rows are read; as training rows by default.",
        keys={**_DATALOADER_KEYS, "batch_size": _whole("Rows per batch.", 1)},
    ),
    "optimizer": Section(
        "The optimizer and its parameter groups.",
        kind="optimizer",
        takes=("automodel_core.optim:build_optimizer",),
        runtime=("params", "model", "optimizer_cls"),
    ),
    "lr_scheduler": Section(
        "The learning rate over the run; constant without this section.",
        takes=("automodel_core.optim:OptimizerParamScheduler",),
        runtime=("optimizer",),
        offers=("init_lr", "max_lr", "min_lr", "lr_warmup_steps", "lr_decay_steps", "lr_decay_style"),
    ),
    "clip_grad_norm": Section(
        "Gradient clipping.",
        keys={
            "max_norm": Key(
                {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
                "Largest norm of all gradients together; null only measures. 1.0 by default.",
            )
        },
    ),
    "watchdog": Section(
        "Steps that are not finite, and losses that stand out: what to do about them.",
        takes=("automodel_recipes.watchdog:Watchdog",),
    ),
    "mixed_precision": Section(
        "Compute in half precision on float32 weights.",
        keys={"dtype": Key({"enum": ["bfloat16", "float16"]}, "Of matmuls; float16 scales the loss.")},
        takes=("automodel_core.training:LossScaler",),
    ),
    "neftune": Section(
        "Noise on the input embeddings while training.",
        takes=("automodel_core.training:neftune",),
        runtime=("model", "seed"),
    ),
    "ema": Section(
        "An average of the weights over the steps, which is what is validated and written at the end.",
        takes=("automodel_core.training:EMA",),
        runtime=("model",),
    ),
    "qat": Section(
        "Train with the rounding of 4-bit weights, and 8-bit inputs, in the forward pass.",
        takes=("automodel_core.quantization:apply_qat",),
        runtime=("model",),
    ),
    "checkpoint": Section(
        "What the run writes, and where.",
        keys={
            "enabled": _flag("Write checkpoints to go on from; the finished weights are written in any case."),
            "is_async": _flag("Write in the background; training waits only while the state is copied."),
            "model_save_format": Key(
                {"enum": ["safetensors", "torch_save"]},
                "torch_save also writes torch's own distributed checkpoint to dcp/step-N, for other tools.",
            ),
            "save_consolidated": Key(
                {"enum": ["final", "every", True, False]},
                "Weights in Hugging Face format: to final/ at the end, with every (or true) also to hf/step-N, or not.",
            ),
            "read_back": _flag("Prove before the first step and at the end that checkpoint and weights load; true."),
            "checkpoint_dir": _text("The run's directory; a dated one under runs/ by default."),
            "max_recent_checkpoints": _whole("How many checkpoints to keep.", 1),
            "restore_from": _text("A checkpoint to start from; a path, or the URL of an object store."),
            "best_metric_key": _text(
                "Metric whose best checkpoint is kept as well, such as val/loss; with a leading - higher is better."
            ),
        },
    ),
    "kubernetes": Section("The job of `launch k8s`.", takes=("automodel_recipes.launch.kubernetes:KubernetesConfig",)),
    "slurm": Section(
        "The job of `launch slurm`.",
        takes=("automodel_recipes.launch.slurm:SlurmConfig",),
        keys={"extra_mounts": Key({"type": "array"}, "Directories {source, dest} that the container sees.")},
    ),
    "evaluation": Section(
        "What is measured besides validation loss.",
        keys={
            "exact_match": _flag("Generate answers to validation rows and count those equal to the reference."),
            "max_new_tokens": _whole("Longest generated answer in tokens.", 1),
            "num_rows": _whole("How many validation rows to answer; all by default.", 1),
            "num_samples": _whole("How many answers to print at the end.", 0),
            "num_step_samples": _whole("Rows to answer at every validation, into samples.jsonl; none by default.", 0),
            "batch_size": _whole("Prompts generated together.", 1),
            "at_start": _flag("Measure before the first step as well."),
        },
    ),
}

_LLM["monitoring"] = Section(
    "What is measured and warned of while a run goes on.",
    keys={
        "peak_tflops": Key(
            {"type": "number", "exclusiveMinimum": 0},
            "The device's dense peak in TFLOP/s, which MFU is a share of; known for common GPUs, measured on a CPU.",
        ),
        "phase_times": _flag(
            "Add the seconds of each phase (data, forward_backward, ...) to the rows of steps; false."
        ),
        "memory_estimate": _flag("Estimate a step's memory before the first one; true."),
        "track_memory": _flag("On a CPU: follow every tensor of the training steps and report their peak; slower."),
        "stall_warning_s": Key(
            {"type": "number", "minimum": 0}, "Seconds of waiting for data that call for a warning; 60 by default."
        ),
        "host_growth_warning_gib": Key(
            {"type": "number", "minimum": 0},
            "Growth of host memory that calls for one; 4 by default.",
        ),
    },
)

_LLM["early_stopping"] = Section(
    "End a run whose validation metric no longer improves; its best checkpoint is kept.",
    takes=("automodel_recipes.early_stopping:EarlyStopping",),
)
_LLM["profiler"] = Section(
    "Record a few steps with torch's profiler, into RUN/profile.",
    keys={
        "enabled": _flag("Whether to record; true."),
        "ranks": Key({"type": "array", "items": {"type": "integer", "minimum": 0}}, "Ranks that record; [0]."),
    },
    takes=("automodel_recipes.profiling:StepProfiler",),
    runtime=("directory", "device", "rank"),
)
_LLM["wandb"] = Section(
    "Log to Weights & Biases; without a key the run is written offline.",
    keys={
        "enabled": _flag("Whether to log there; true."),
        "project": _text("Project of the run."),
        "entity": _text("User or team."),
        "name": _text("Name of the run."),
        "group": _text("Group of the run."),
        "job_type": _text("Kind of the run."),
        "notes": _text("A longer description."),
        "tags": Key({"type": "array"}, "Words to find the run by."),
        "mode": Key({"enum": ["online", "offline", "disabled", "shared"]}, "WANDB_MODE by default, else online."),
        "id": _text("Id of a run to go on with; a resumed run finds its own."),
        "save_dir": _text("Where W&B keeps its files; the run's directory by default."),
        "api_key": _text("Only as ${WANDB_API_KEY}; not needed where that variable is set."),
    },
)
_LLM["tensorboard"] = Section(
    "Write TensorBoard event files.",
    keys={
        "log_dir": _text("Where; RUN/tensorboard by default."),
        "flush_secs": _whole("Seconds between writes to disk.", 1),
    },
)
_LLM["mlflow"] = Section(
    "Log to MLflow.",
    keys={
        "tracking_uri": _text("Server or store; MLFLOW_TRACKING_URI, else files under RUN/mlruns."),
        "experiment_name": _text("Experiment of the run; automodel by default."),
        "run_name": _text("Name of the run; that of its directory by default."),
        "tags": Key({"type": "object"}, "Tags of the run."),
    },
)

_VLM_OFFERS = ("tokenizer", "processor")
_VLM: dict[str, Section] = {
    **{name: section for name, section in _LLM.items() if name != "tokenizer"},  # it is the processor's
    "processor": Section(
        "The processor; the model's own by default.",
        kind="processor",
        keys={name: _TOKENIZER_KEYS[name] for name in ("pretrained_model_name_or_path", "revision", "subfolder")},
        takes=_ADDED_TOKENS,
        runtime=("tokenizer",),
    ),
    "dataset": replace(_LLM["dataset"], offers=_VLM_OFFERS),
    "validation_dataset": replace(_LLM["validation_dataset"], offers=_VLM_OFFERS),
}

_TEACHER = {"teacher_model": Section("The model to learn from.", kind="model", required=True)}
_KD = {**_LLM, **_TEACHER}

_NOT_FOR_CLASSES = ("packed_sequence", "evaluation")
_SEQ_CLS = {name: section for name, section in _LLM.items() if name not in _NOT_FOR_CLASSES}

RECIPES: dict[str, dict[str, Section]] = {
    "KnowledgeDistillationRecipe": _KD,
    "LLMFinetuneRecipe": _LLM,
    "SequenceClassificationRecipe": _SEQ_CLS,
    "VLMFinetuneRecipe": _VLM,
    "VLMKnowledgeDistillationRecipe": {**_VLM, **_TEACHER},
}
"""Sections by recipe name. A recipe that another package registers has the sections of the one it derives from."""

DEFAULT_RECIPE = "LLMFinetuneRecipe"


def find_section(recipe: str, name: str) -> Section | None:
    """The section of a top-level key; ``validation_dataset_NAME`` is a validation set."""
    sections = RECIPES[recipe]
    if name.startswith("validation_dataset_") and len(name) > len("validation_dataset_"):
        return sections.get("validation_dataset")
    return sections.get(name)
