"""Configurations of other tools become ours; what has no counterpart is said with its place."""

from pathlib import Path

import pytest
import yaml

from automodel_core.config import ConfigError, load_config
from automodel_recipes.cli import main
from automodel_recipes.migrate import migrate
from automodel_recipes.validation import validate

SAMPLES = sorted(Path(__file__).with_name("samples").glob("*.yaml"))
NEMO = [path for path in SAMPLES if path.stem.startswith("nemo")]


def migrated(text, tmp_path, **keys):
    """Migrate a text; returns the result and its values."""
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    result = migrate(path, **keys)
    return result, yaml.safe_load(result.text)


def without_optional(problems):
    """The texts of problems, without that of a package which a sample names and which is an extra here."""
    missing = ("package 'bitsandbytes' is not installed", "which is not installed; pip install")
    return [text for text in map(str, problems) if not any(part in text for part in missing)]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_becomes_a_configuration_that_validates(path, tmp_path, monkeypatch):
    result = migrate(path)
    assert without_optional(result.unknown) == []
    out = tmp_path / "ours.yaml"
    out.write_text(result.text)
    monkeypatch.chdir(tmp_path)
    for name in ("my.jsonl", "x.jsonl", "data.jsonl"):
        Path(name).write_text('{"q": "a", "a": "b"}\n')
    assert without_optional(validate(load_config(out), nproc_per_node=2).problems) == []
    assert "nemo_automodel" not in result.text


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_no_value_is_lost(path):
    """Every leaf of the source is in the result, or a note speaks of it or of what it stands in."""
    result = migrate(path)
    spoken = {note.path for note in result.notes}
    ours = yaml.safe_load(result.text)

    def leaves(value, at=""):
        if not isinstance(value, dict):
            yield at, value
            return
        for key, below in value.items():
            yield from leaves(below, f"{at}.{key}" if at else key)

    node: dict = {}

    def kept(at, value):
        for key in at.split("."):
            if not isinstance(ours_at := node.get("value"), dict) or key not in ours_at:
                return False
            node["value"] = ours_at[key]
        return node["value"] == value

    for at, value in leaves(yaml.safe_load(path.read_text())):
        node = {"value": ours}
        above = [".".join(at.split(".")[:n]) for n in range(1, at.count(".") + 2)]
        assert kept(at, value) or spoken & set(above), at


def test_unknown_keys_are_reported_with_line_and_column(tmp_path, capsys):
    text = NEMO[0].read_text() + "megatron_rewind: {depth: 3}\n"
    text = text.replace("optimizer: {", "optimizer: {momentun: 0.9, ")
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    assert main(["migrate", str(path), "-o", str(tmp_path / "ours.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    unknown = [line for line in lines if line.startswith("unknown")]
    row = text.splitlines().index("megatron_rewind: {depth: 3}") + 1
    assert any(f"theirs.yaml:{row}:1 megatron_rewind" in line for line in unknown)
    assert any("optimizer.momentun" in line for line in unknown)
    assert len(unknown) == 2


def test_an_unknown_target_is_reported_once(tmp_path):
    text = "model: {_target_: nemo_automodel.components.models.mystery.Mystery}\ndataset: {_target_: mock}\n"
    result, _ = migrated(text, tmp_path)
    assert [str(note.source).rpartition("theirs.yaml")[2] for note in result.unknown] == [":1:9"]


def test_environment_references_stay_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", "/secret/place")
    text = "base_model: ${WHERE}\nlearning_rate: ${RATE,1e-4}\ndatasets: [{path: '${WHERE}', type: alpaca}]\n"
    result, values = migrated(text, tmp_path)
    assert values["model"]["pretrained_model_name_or_path"] == "${WHERE}"
    assert values["optimizer"]["lr"] == "${RATE,1e-4}"
    assert "/secret" not in result.text


def test_tokens_never_reach_the_new_file(tmp_path):
    _, values = migrated(NEMO[0].read_text() + "slurm: {job_name: j, hf_token: hf_abc, wandb_key: k}\n", tmp_path)
    assert values["slurm"] == {"job_name": "j"}


def test_two_settings_of_one_key_are_a_question_not_a_choice(tmp_path):
    text = NEMO[0].read_text().replace("torch_dtype:", "dtype: float32\n  torch_dtype:")
    result, values = migrated(text, tmp_path)
    assert [note.path for note in result.unknown] == ["model.torch_dtype"]
    assert values["model"]["dtype"] == "float32"


def test_a_value_without_counterpart_is_unknown(tmp_path):
    text = "base_model: m\noptimizer: galore_adamw\nlearning_rate: 1e-4\ndatasets: [{path: x, type: alpaca}]\n"
    result, values = migrated(text, tmp_path)
    assert [note.path for note in result.unknown] == ["optimizer"]
    assert "galore_adamw" in result.unknown[0].message
    assert values["optimizer"] == {"lr": 1e-4, "_target_": "torch.optim.AdamW"}


def test_several_axolotl_datasets_are_not_dropped(tmp_path):
    text = "base_model: m\ndatasets: [{path: a, type: alpaca}, {path: b, type: alpaca}]\n"
    result, _ = migrated(text, tmp_path)
    assert "datasets" in {note.path for note in result.unknown}


def test_added_tokens_of_axolotl_are_added_here(tmp_path):
    text = (
        "base_model: m\ndatasets: [{path: a, type: alpaca}]\nadapter: lora\nlora_r: 8\ntokens: [foo]\n"
        "special_tokens: {pad_token: x, additional_special_tokens: ['<|tool|>']}\nlora_modules_to_save: [lm_head]\n"
    )
    result, values = migrated(text, tmp_path)
    assert values["tokenizer"] == {"add_tokens": ["foo"], "add_special_tokens": ["<|tool|>"]}
    assert values["peft"]["modules_to_save"] == ["lm_head"]
    assert [note.path for note in result.unknown] == []
    assert "special_tokens" in {note.path for note in result.notes}


def test_a_file_of_no_known_form_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no form is recognised"):
        migrated("a: 1\n", tmp_path)


def test_an_existing_file_is_not_overwritten(tmp_path):
    out = tmp_path / "ours.yaml"
    out.write_text("mine")
    assert main(["migrate", str(SAMPLES[0]), "-o", str(out)]) == 2
    assert out.read_text() == "mine"


def tiny_seed_era(tmp_path):
    """A seed-era text configuration on the shipped tiny model, one core, a few steps."""
    (tmp_path / "rows.jsonl").write_text('{"q": "two mugs", "a": "mug 2"}\n' * 16)
    path = tmp_path / "theirs.yaml"
    path.write_text(
        """step_scheduler: {grad_acc_steps: 2, ckpt_every_steps: 100, num_epochs: 1, max_steps: 2}
rng: {_target_: nemo_automodel.components.training.rng.StatefulRNG, seed: 1111, ranked: true}
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: pkg://automodel_recipes/assets/tiny_llama
  torch_dtype: float32
peft: {_target_: nemo_automodel.components._peft.lora.PeftConfig, match_all_linear: true, dim: 4}
distributed: {_target_: nemo_automodel.components.distributed.ddp.DDPManager, backend: gloo}
loss_fn: {_target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy}
dataset:
  _target_: nemo_automodel.components.datasets.ColumnMappedTextInstructionDataset
  path_or_dataset_id: HERE/rows.jsonl
  column_mapping: {question: q, answer: a}
dataloader:
  _target_: torchdata.stateful_dataloader.StatefulDataLoader
  collate_fn: nemo_automodel.components.datasets.utils.default_collater
  batch_size: 4
optimizer: {_target_: torch.optim.Adam, lr: 1.0e-3}
lr_scheduler: {lr_decay_style: cosine, min_lr: 1.0e-6}
checkpoint: {enabled: true, checkpoint_dir: HERE/out, model_save_format: safetensors}
comet: {project: p}
""".replace("HERE", str(tmp_path))
    )
    return path


def test_a_seed_era_file_validates_as_it_is(tmp_path, capsys):
    assert main(["validate", str(tiny_seed_era(tmp_path))]) == 0
    assert "comet" in capsys.readouterr().err


def test_code_of_a_repository_is_not_let_in_by_a_detour(tmp_path, capsys):
    path = tmp_path / "theirs.yaml"
    path.write_text("model: {name: m, config_overrides: {trust_remote_code: true}}\ndata: {dataset_type: mock}\n")
    assert main(["validate", str(path)]) == 2
    assert "trust_remote_code" in capsys.readouterr().err


@pytest.mark.more
@pytest.mark.parametrize("unchanged", [True, False])
def test_a_seed_era_file_trains(tmp_path, unchanged):
    path = tiny_seed_era(tmp_path)
    if not unchanged:
        ours = tmp_path / "ours.yaml"
        assert main(["migrate", str(path), "-o", str(ours)]) == 0
        path = ours
    assert main(["train", str(path), "--quiet"]) == 0
    assert list((tmp_path / "out").glob("**/adapter_model.safetensors"))


PRECISION = {
    "fp8: {recipe_name: tensorwise, emulate: true}": {"fp8": {"recipe_name": "tensorwise", "emulate": True}},
    "fp8: {emulate: true}\npeft: {dim: 4}": {"fp8": {"recipe_name": "rowwise"}},
    "fp8: {enabled: false}": {},
    "quantization: {load_in_4bit: true, bnb_4bit_compute_dtype: torch.bfloat16}": {
        "quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
    },
    "quantization: {load_in_4bit: false}": {},
    "compile: {mode: default}": {},
    "compile: {enabled: true, dynamic: false}": {"compile": {"enabled": True, "dynamic": False}},
}


@pytest.mark.parametrize("text", PRECISION)
def test_sections_of_precision_keep_their_names(text, tmp_path):
    _, values = migrated(f"recipe: TrainFinetuneRecipeForNextTokenPrediction\n{text}\n", tmp_path)
    assert {name: values[name] for name in ("fp8", "quantization", "compile") if name in values} == PRECISION[text]
