"""A small file of each form is migrated and trains on the tiny models that ship with the package."""

import json
from importlib import resources

import pytest
import torch
from PIL import Image

from automodel_recipes.cli import main
from automodel_recipes.loggers.jsonl import read_jsonl

pytestmark = pytest.mark.more

TINY = "pkg://automodel_recipes/assets/tiny_llama"
FORMS = {
    "hierarchical": f"""
model: {{name: {TINY}, config_overrides: {{attn_implementation: eager}}}}
data: {{dataset_type: chat, path: HERE/chats.jsonl, max_length: 128, batch_size: 4, shuffle: false}}
training: {{learning_rate: 1.0e-3, max_steps: 2, num_epochs: 1, weight_decay: 0.1, lr_scheduler: linear,
  warmup_steps: 1, gradient_accumulation_steps: 2, max_grad_norm: 0.5, save_steps: 2, log_interval: 1,
  output_dir: HERE/out}}
lora: {{rank: 4, alpha: 8, target_modules: ["*.q_proj"]}}
""",
    "trl": f"""
model_name_or_path: {TINY}
torch_dtype: float32
dataset_name: HERE/chats.jsonl
max_length: 128
learning_rate: 1.0e-3
max_steps: 2
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
lr_scheduler_type: constant
optim: sgd
use_peft: true
lora_r: 4
lora_alpha: 8
lora_target_modules: all-linear
packing: true
bf16: true
output_dir: HERE/out
""",
    "axolotl": f"""
base_model: {TINY}
torch_dtype: float32
datasets: [{{path: HERE/alpaca.jsonl, type: alpaca}}]
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
sequence_len: 128
micro_batch_size: 4
gradient_accumulation_steps: 2
max_steps: 2
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 0.001
train_on_inputs: false
output_dir: HERE/out
""",
    "nemo, current": f"""
recipe: TrainFinetuneRecipeForNextTokenPrediction
step_scheduler: {{global_batch_size: 8, local_batch_size: 4, num_epochs: 1, max_steps: 2, ckpt_every_steps: 100}}
dist_env: {{backend: gloo, timeout_minutes: 1}}
rng: {{_target_: nemo_automodel.components.training.rng.StatefulRNG, seed: 1, ranked: true}}
model: {{_target_: nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path: "{TINY}",
  torch_dtype: float32}}
clip_grad_norm: {{max_norm: 1.0}}
distributed: {{strategy: ddp, dp_size: none, tp_size: 1, cp_size: 1}}
peft: {{_target_: nemo_automodel.components._peft.lora.PeftConfig, target_modules: ["*_proj"], dim: 4, alpha: 8}}
loss_fn: {{_target_: nemo_automodel.components.loss.linear_ce.FusedLinearCrossEntropy}}
dataset: {{_target_: nemo_automodel.components.datasets.llm.ChatDataset, path_or_dataset_id: HERE/chats.jsonl}}
packed_sequence: {{packed_sequence_size: 64, packing_strategy: thd}}
dataloader: {{_target_: torchdata.stateful_dataloader.StatefulDataLoader,
  collate_fn: {{_target_: nemo_automodel.components.datasets.utils.packed_sequence_thd_collater}}, shuffle: true}}
optimizer: {{_target_: torch.optim.AdamW, lr: 1.0e-3, weight_decay: 0}}
lr_scheduler: {{lr_decay_style: cosine, min_lr: 1.0e-6}}
checkpoint: {{enabled: true, checkpoint_dir: HERE/out, save_consolidated: final}}
ci: {{recipe_owner: someone}}
""",
    "nemo, vision-language of the seed": """
step_scheduler: {grad_acc_steps: 2, ckpt_every_steps: 100, num_epochs: 1, max_steps: 2}
rng: {_target_: nemo_automodel.components.training.rng.StatefulRNG, seed: 1, ranked: true}
model: {_target_: nemo_automodel.NeMoAutoModelForImageTextToText.from_pretrained,
  pretrained_model_name_or_path: HERE/llava, torch_dtype: float32}
processor: {_target_: transformers.AutoProcessor.from_pretrained,
  pretrained_model_name_or_path: pkg://automodel_recipes/assets/tiny_llava}
peft: {_target_: nemo_automodel.components._peft.lora.PeftConfig, match_all_linear: true,
  exclude_modules: ["*vision_tower*", "*lm_head*"], dim: 4, alpha: 8}
loss_fn: {_target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy}
dataset: {_target_: nemo_automodel.components.datasets.vlm.datasets.make_rdr_dataset,
  path_or_dataset: HERE/pictures.jsonl, split: train}
dataloader: {_target_: torchdata.stateful_dataloader.StatefulDataLoader, batch_size: 2, num_workers: 0,
  collate_fn: {_target_: nemo_automodel.components.datasets.vlm.collate_fns.default_collate_fn}}
optimizer: {_target_: torch.optim.AdamW, lr: 1.0e-3}
checkpoint: {enabled: true, checkpoint_dir: HERE/out, model_save_format: safetensors}
""",
}


def random_llava(path):
    """The shipped configuration with weights of its own."""
    from transformers import AutoConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(resources.files("automodel_recipes") / "assets/tiny_llava")
    LlavaForConditionalGeneration(config).save_pretrained(path)


@pytest.fixture
def here(tmp_path):
    """Rows in the shapes that the forms name."""
    turns = [{"role": "user", "content": "two mugs"}, {"role": "assistant", "content": "mug 2"}]
    random_llava(tmp_path / "llava")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    rows = {
        "chats": {"messages": turns},
        "alpaca": {"instruction": "two mugs", "input": "", "output": "mug 2"},
        "pictures": {"image": str(tmp_path / "red.png"), "text": "red"},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 64)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_a_migrated_file_validates_and_trains(form, here):
    theirs, ours = here / "theirs.yaml", here / "ours.yaml"
    theirs.write_text(FORMS[form].replace("HERE", str(here)))
    assert main(["migrate", str(theirs), "-o", str(ours)]) == 0
    assert main(["validate", str(ours)]) == 0
    assert main(["train", str(ours), "--quiet"]) == 0
    steps = [row for row in read_jsonl(here / "out/metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert steps[1]["loss"] != steps[0]["loss"]
    assert (here / "out/final/adapter_model.safetensors").is_file()
