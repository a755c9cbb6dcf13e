"""The sections that change how a model computes: quantization, fp8 and compile, by their numbers."""

import pytest
import torch

from automodel_core.config import config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions

LORA = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8}


@pytest.fixture
def train(tiny_config, tmp_path):
    """Train the tiny model in this process for three steps; gives the recipe and its logged train rows."""
    from automodel_recipes.loggers.jsonl import read_jsonl

    recipes = []

    def run(name, **sections):
        config = {**tiny_config, **sections}
        config["step_scheduler"] = {**config["step_scheduler"], "max_steps": 3}
        config["validation_dataset"] = config["dataset"]
        config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / name)}
        recipe = LLMFinetuneRecipe(config_from_dict(config), TrainOptions(quiet=True))
        recipes.append(recipe)
        recipe.setup()
        recipe.train()
        return recipe, [row for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "train"]

    yield run
    for recipe in recipes:
        recipe.close()


def curves(rows):
    return torch.tensor([[row["loss"], row["grad_norm"]] for row in rows], dtype=torch.float64)


def blocks(recipe):
    return recipe.unwrapped().model.layers


@pytest.mark.more
def test_compiled_blocks_train_as_eager_ones(train):
    _, eager = train("eager")
    recipe, compiled = train("compiled", compile={"backend": "eager", "dynamic": True})
    assert all(block._compiled_call_impl is not None for block in blocks(recipe))
    torch.testing.assert_close(curves(compiled), curves(eager), rtol=1e-5, atol=0)
    off, _ = train("off", compile={"enabled": False})
    assert all(block._compiled_call_impl is None for block in blocks(off))


def test_use_triton_takes_the_lora_kernel_with_the_other_ops(train):
    from automodel_kernels.patch import KernelReport

    _, plain = train("plain", peft=LORA)
    recipe, kernel = train("kernel", peft={**LORA, "use_triton": True}, kernels={"ops": ["rms_norm"]})
    (report,) = [report for report in recipe.built.reports if isinstance(report, KernelReport)]
    assert report.counts() == {"lora": 14, "rms_norm": 5}
    torch.testing.assert_close(curves(kernel), curves(plain), rtol=1e-4, atol=0)


def test_an_fp8_base_under_lora_rounds_and_trains(train):
    _, plain = train("plain", peft=LORA)
    recipe, rounded = train("fp8", peft=LORA, fp8={"recipe_name": "rowwise"})
    codes = {name for name, weight in recipe.unwrapped().named_parameters() if weight.dtype == torch.float8_e4m3fn}
    assert len(codes) == 14
    change = (curves(rounded) / curves(plain) - 1).abs()[:, 0]
    assert 0 < change.max() < 0.02
    assert rounded[-1]["loss"] < rounded[0]["loss"]


def test_fp8_training_rounds_every_product_and_saves_plain_weights(train):
    pytest.importorskip("torchao", reason="the optional extra 'ao' of automodel-kernels is not installed")
    from torchao.float8.float8_linear import Float8Linear
    from transformers import AutoModelForCausalLM

    _, plain = train("plain")
    recipe, rounded = train("fp8", fp8={"emulate": True, "filter_fqns": ["lm_head", "k_proj"]})
    found = [name for name, module in recipe.unwrapped().named_modules() if isinstance(module, Float8Linear)]
    assert len(found) == 12
    change = (curves(rounded) / curves(plain) - 1).abs()[:, 0]
    assert 0 < change.max() < 0.05
    written = AutoModelForCausalLM.from_pretrained(recipe.run_dir.final).state_dict()
    for name, weight in recipe.unwrapped().state_dict().items():
        assert torch.equal(written[name], weight.detach()), name


@pytest.mark.parametrize("double", [False, True])
def test_lora_on_four_bits_is_lora_on_the_dequantised_base(train, tiny_config, tiny_model, tmp_path, double):
    """Losses and gradient norms, the second and third step with a validation in eval mode before them."""
    pytest.importorskip("bitsandbytes", reason="the optional extra 'bitsandbytes' of automodel-core is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from automodel_core.peft.base_weight import base_weight

    steps = {**tiny_config["step_scheduler"], "val_every_steps": 1}
    keys = {"peft": LORA, "step_scheduler": steps}
    recipe, quantised = train("four", quantization={"load_in_4bit": True, "bnb_4bit_use_double_quant": double}, **keys)
    layers = {name: module for name, module in recipe.unwrapped().named_modules() if hasattr(module, "lora_A")}
    assert {type(module).__name__ for module in layers.values()} == {"LoRALinear4bit"}
    assert recipe.built.num_parameters > sum(p.numel() for p in recipe.built.model.parameters())

    dense = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    rounding = 0.0
    for name, module in layers.items():
        weight = base_weight(module).float()
        rounding = max(rounding, float((weight - dense.get_submodule(name).weight.detach()).abs().max()))
        dense.get_submodule(name).weight.data = weight
    assert rounding > 1e-3
    dense.save_pretrained(tmp_path / "dense")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "dense")
    model = {**tiny_config["model"], "pretrained_model_name_or_path": str(tmp_path / "dense")}
    _, reference = train("reference", model=model, **keys)
    torch.testing.assert_close(curves(quantised), curves(reference), rtol=2e-3, atol=0)


def test_eight_bits_train_the_adapter_alone(train):
    pytest.importorskip("bitsandbytes", reason="the optional extra 'bitsandbytes' of automodel-core is not installed")
    _, plain = train("plain", peft=LORA)
    recipe, rows = train("eight", peft=LORA, quantization={"load_in_8bit": True, "llm_int8_skip_modules": ["k_proj"]})
    kinds = [type(module).__name__ for module in recipe.unwrapped().modules()]
    assert kinds.count("LoRALinear8bitLt") == 12
    change = (curves(rows) / curves(plain) - 1).abs()[:, 0]
    assert 0 < change.max() < 0.05
    assert (recipe.run_dir.final / "adapter_model.safetensors").is_file()


def test_a_classifier_on_four_bits_keeps_its_head_whole(tiny_config, tmp_path):
    """The head is a module of the adapter, written with it; the base cannot be read back as a classifier."""
    pytest.importorskip("bitsandbytes", reason="the optional extra 'bitsandbytes' of automodel-core is not installed")
    import json

    from safetensors.torch import load_file

    from automodel_recipes import SequenceClassificationRecipe

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": letter * 5, "label": letter}) + "\n" for letter in "abab"))
    load = "automodel_core.NeMoAutoModelForSequenceClassification.from_pretrained"
    tiny_config["model"] |= {"_target_": load, "num_labels": 2}
    tiny_config["dataset"] = {"_target_": "classification", "path_or_dataset_id": str(rows), "label_names": ["a", "b"]}
    tiny_config |= {"peft": {**LORA, "modules_to_save": ["score"]}, "quantization": {"load_in_4bit": True}}
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "out")}
    recipe = SequenceClassificationRecipe(config_from_dict(tiny_config), TrainOptions(quiet=True))
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    assert type(recipe.unwrapped().score) is torch.nn.Linear
    written = load_file(tmp_path / "out" / "final" / "adapter_model.safetensors")
    assert torch.equal(written["base_model.model.score.weight"], recipe.unwrapped().score.weight)


@pytest.mark.more
def test_a_run_on_four_bits_goes_on_as_if_it_had_not_stopped(cli, tiny_config):
    pytest.importorskip("bitsandbytes", reason="the optional extra 'bitsandbytes' of automodel-core is not installed")
    tiny_config |= {"peft": LORA, "quantization": {"load_in_4bit": True}, "checkpoint": {"enabled": True}}
    tiny_config["step_scheduler"] |= {"ckpt_every_steps": 2}
    whole = cli(tiny_config, "whole")
    cli(tiny_config, "parts", "--max-steps", "2")
    parts = cli(tiny_config, "parts", "--resume", "auto")
    assert parts.train("loss") == whole.train("loss")


@pytest.mark.more
def test_optimizer_states_of_eight_bits_are_stored_and_resumed(cli, tiny_config):
    pytest.importorskip("bitsandbytes", reason="the optional extra 'bitsandbytes' of automodel-core is not installed")
    tiny_config["optimizer"] = {"_target_": "bitsandbytes.optim.AdamW8bit", "lr": 0.01, "min_8bit_size": 16}
    tiny_config["checkpoint"] = {"enabled": True}
    tiny_config["step_scheduler"] |= {"ckpt_every_steps": 2}
    whole = cli(tiny_config, "whole")
    stopped = cli(tiny_config, "parts", "--max-steps", "2")
    from safetensors.torch import load_file

    (states,) = stopped.path.glob("step-00000002/optim/*.safetensors")
    assert torch.uint8 in {tensor.dtype for tensor in load_file(states).values()}
    parts = cli(tiny_config, "parts", "--resume", "auto")
    assert parts.train("loss") == whole.train("loss")


@pytest.mark.more
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_lora_on_four_bits_over_two_processes_is_that_of_one(cli, tiny_config, strategy):
    pytest.importorskip("bitsandbytes", reason="the optional extra 'bitsandbytes' of automodel-core is not installed")
    tiny_config |= {"peft": LORA, "quantization": {"load_in_4bit": True}}
    tiny_config["step_scheduler"] |= {"local_batch_size": 4}
    one = cli(tiny_config, "one")
    two = cli({**tiny_config, "distributed": {"strategy": strategy}}, "two", "--nproc-per-node", "2")
    for key in ("loss", "grad_norm"):
        assert two.train(key) == pytest.approx(one.train(key), rel=1e-4)


@pytest.mark.more
def test_fp8_gathers_under_fsdp_are_saved_and_resumed(cli, tiny_config):
    """Weights that FSDP2 gathers in FP8 are stored as the numbers that they are, and a run goes on from them."""
    pytest.importorskip("torchao", reason="the optional extra 'ao' of automodel-kernels is not installed")
    tiny_config["distributed"] = {"strategy": "fsdp2"}
    tiny_config["step_scheduler"] |= {"local_batch_size": 4, "ckpt_every_steps": 2}
    tiny_config["checkpoint"] = {"enabled": True}
    tiny_config["fp8"] = {
        "emulate": True,
        "enable_fsdp_float8_all_gather": True,
        "precompute_float8_dynamic_scale_for_fsdp": True,
    }
    whole = cli(tiny_config, "whole", "--nproc-per-node", "2")
    cli(tiny_config, "parts", "--nproc-per-node", "2", "--max-steps", "2")
    parts = cli(tiny_config, "parts", "--nproc-per-node", "2", "--resume", "auto")
    assert parts.train("step") == [1, 2, 3, 4, 5, 6]
    assert parts.train("loss") == whole.train("loss")
