"""Every public name that users of the seed system look for is importable from its home."""

import importlib

import pytest

NAMES = {
    "automodel_core": ["NeMoAutoModelForCausalLM", "NeMoAutoModelForImageTextToText"],
    "automodel_kernels": ["patch_model_with_kernel_optimizations", "TEParallelCrossEntropy", "FP8Config"],
    "automodel_core.peft": ["PeftConfig", "LoRALayer", "ModuleMatcher"],
    "automodel_parallel": ["DDPManager", "FSDP2Manager", "NVFSDPManager"],
    "automodel_core.config": ["load_config"],
    "automodel_core.training": ["StatefulRNG", "StepScheduler", "Timers"],
    "automodel_core.optim": ["OptimizerParamScheduler"],
    "automodel_core.loss": ["MaskedCrossEntropy", "ChunkedCrossEntropy", "FusedLinearCrossEntropy"],
    "automodel_data": [
        "ColumnMappedTextInstructionDataset",
        "HellaSwag",
        "make_squad_dataset",
        "PackedSequence",
        "build_unpacked_dataset",
        "build_packed_dataset",
        "make_rdr_dataset",
        "make_cord_v2_dataset",
        "make_medpix_dataset",
        "make_cv17_dataset",
        "default_collate_fn",
        "qwen2_5_collate_fn",
    ],
    "automodel_ckpt": ["CheckpointingConfig", "ModelState", "OptimizerState"],
    "automodel_recipes": ["BaseRecipe", "LLMFinetuneRecipe", "VLMFinetuneRecipe", "SlurmConfig", "setup_logging"],
}


@pytest.mark.parametrize("module, name", [(m, n) for m, names in NAMES.items() for n in names])
def test_seed_name_is_importable(module, name):
    assert callable(getattr(importlib.import_module(module), name))
