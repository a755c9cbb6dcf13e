"""Settings that contradict one another, or the machine."""

import importlib.util
from collections.abc import Callable

from automodel_core.config import ConfigNode
from automodel_recipes.validation.facts import number
from automodel_recipes.validation.layout_rules import LAYOUT_RULES, data_ranks
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.vocabulary_rules import added_rows_train, added_tokens_are_new
from automodel_recipes.validation.watch_rules import metric_is_measured, samples_have_rows, trackers_are_there

# transformers derives a block-diagonal mask from position ids that restart, for these and only these.
_ISOLATING_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


def check_rules(config: ConfigNode, report: Report, *, nproc_per_node: int = 1) -> None:
    """Apply every rule; each reports at the value that has to change."""
    for rule in RULES:
        rule(config, report, nproc_per_node)


def _batch_divides(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    whole = number(config, "step_scheduler.global_batch_size")
    local = number(config, "step_scheduler.local_batch_size") or 1
    if whole is None:
        return
    source = config.source("step_scheduler.global_batch_size")
    if config.get("step_scheduler.grad_acc_steps") is not None:
        message = "stands beside grad_acc_steps, which is another way to say the same; remove one of the two"
        report.add(source, "step_scheduler.global_batch_size", message)
        return
    dp_size = data_ranks(config, nproc_per_node)
    if whole % (local * dp_size):
        kind = "processes" if dp_size == nproc_per_node else "data ranks"
        ranks = f" x {dp_size} {kind}" if dp_size > 1 else ""
        nearest = max(whole - whole % (local * dp_size), local * dp_size)
        message = f"{whole} is not a multiple of local_batch_size {local}{ranks}; {nearest} is"
        report.add(source, "step_scheduler.global_batch_size", message)


def _packing_isolates(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    attention = config.get("model.attn_implementation")
    if config.get("packed_sequence") is None or attention is None or attention in _ISOLATING_ATTENTION:
        return
    if config.get("packed_sequence.packed_sequence_size", 0) == 0:
        return
    message = (
        f"{attention!r} cannot keep packed documents apart; use one of {', '.join(_ISOLATING_ATTENTION)}, "
        "or remove packed_sequence"
    )
    report.add(config.source("model.attn_implementation"), "model.attn_implementation", message)


def _triton_is_there(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    if config.get("peft.use_triton") is True and importlib.util.find_spec("triton") is None:
        message = "needs triton, which is not installed; pip install 'automodel-kernels[triton]', or remove it"
        report.add(config.source("peft.use_triton"), "peft.use_triton", message)


def _quantized_base_is_loadable(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    if config.get("quantization") is None:
        return
    path, source = "quantization", config.source("quantization")
    chosen = [bits for bits in ("load_in_4bit", "load_in_8bit") if config.get(f"quantization.{bits}") is True]
    if len(chosen) != 1:
        report.add(source, path, "needs load_in_4bit: true or load_in_8bit: true, one of the two; or remove it")
    if config.get("peft") is None:
        report.add(source, path, "codes cannot be trained; add a `peft:` section for adapters on top, or remove it")
    if config.get("model.quantization_config") is not None:
        report.add(source, path, "stands beside model.quantization_config, which says the same; remove one of the two")
    if not str(config.get("model._target_", "")).endswith(".from_pretrained"):
        report.add(
            source, path, "quantises weights as they are loaded; it needs a model._target_ ending .from_pretrained"
        )
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            message = f"needs {package}, which is not installed; pip install 'automodel-core[bitsandbytes]'"
            report.add(source, path, message)


def _fp8_fits(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    if config.get("fp8") is None or config.get("fp8.enabled") is False:
        return
    source = config.source("fp8")
    if config.get("peft") is not None:
        if config.get("fp8.recipe_name") != "rowwise":
            message = (
                "under LoRA the frozen base is stored in FP8 with a scale for every row; write recipe_name: rowwise"
            )
            report.add(source, "fp8", message)
        if config.get("fp8.emulate") is True:
            message = "has no effect under LoRA, where FP8 products run on every device; remove it"
            report.add(config.source("fp8.emulate"), "fp8.emulate", message)
        if config.get("quantization") is not None:
            report.add(
                source, "fp8", "stands beside quantization, and a base is stored in one form; remove one of the two"
            )
    elif importlib.util.find_spec("torchao") is None:
        report.add(source, "fp8", "needs torchao, which is not installed; pip install 'automodel-kernels[ao]'")
    if config.get("fp8.enable_fsdp_float8_all_gather") is True and config.get("distributed.strategy") != "fsdp2":
        path = "fp8.enable_fsdp_float8_all_gather"
        report.add(
            config.source(path), path, "needs distributed.strategy: fsdp2, whose gathers it narrows; or remove it"
        )


def _compiled_once(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    if config.get("compile") is not None and config.get("distributed.compile") is not None:
        message = "stands beside distributed.compile, which says the same; remove one of the two"
        report.add(config.source("compile"), "compile", message)


def _schedule_fits(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    steps = number(config, "step_scheduler.max_steps")
    warmup = number(config, "lr_scheduler.lr_warmup_steps")
    if steps is not None and warmup is not None and warmup >= steps:
        message = f"warms up for {warmup} steps, but the run has {steps}; choose fewer, or raise max_steps"
        report.add(config.source("lr_scheduler.lr_warmup_steps"), "lr_scheduler.lr_warmup_steps", message)


def _seed_once(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    if config.get("seed") is not None and config.get("rng.seed") is not None:
        report.add(
            config.source("rng.seed"), "rng.seed", "stands beside seed, which says the same; remove one of the two"
        )


def _exact_match_has_rows(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    if config.get("evaluation.exact_match") is True and config.get("validation_dataset") is None:
        message = "needs a `validation_dataset:` whose answers it compares; add one, or remove exact_match"
        report.add(config.source("evaluation.exact_match"), "evaluation.exact_match", message)


Rule = Callable[[ConfigNode, Report, int], None]


def _something_is_kept(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    if config.get("checkpoint.enabled") is False and config.get("checkpoint.save_consolidated") is False:
        message = "false beside enabled: false keeps no weights at all; remove one of the two"
        report.add(config.source("checkpoint.save_consolidated"), "checkpoint.save_consolidated", message)


def _optimizer_can_be_stored(config: ConfigNode, report: Report, nproc_per_node: int) -> None:
    target = str(config.get("optimizer._target_", ""))
    if target.startswith("torchao.") and target.endswith(("8bit", "4bit", "Fp8")):
        message = (
            f"{target} packs its states in a tensor type that checkpoints do not hold, so a run could not resume; use "
            "bitsandbytes.optim.AdamW8bit"
        )
        report.add(config.source("optimizer._target_"), "optimizer._target_", message)


RULES: tuple[Rule, ...] = (
    _batch_divides,
    _packing_isolates,
    _triton_is_there,
    _quantized_base_is_loadable,
    _fp8_fits,
    _compiled_once,
    *LAYOUT_RULES,
    _schedule_fits,
    _seed_once,
    _exact_match_has_rows,
    _something_is_kept,
    _optimizer_can_be_stored,
    trackers_are_there,
    metric_is_measured,
    samples_have_rows,
    added_tokens_are_new,
    added_rows_train,
)
