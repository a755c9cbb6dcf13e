"""All problems of a configuration at once, each with its text and place."""

import json
from pathlib import Path

import pytest

from automodel_core.config import load_config
from automodel_recipes.validation import validate

GOOD = """\
recipe: LLMFinetuneRecipe
seed: 42
device: cpu
step_scheduler:
  global_batch_size: 8
  local_batch_size: 4
  num_epochs: 1
model:
  _target_: automodel_core.NeMoAutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: {model}
  dtype: float32
dataset:
  _target_: column_mapped
  path_or_dataset_id: {data}
  column_mapping: {{question: q, answer: a}}
dataloader:
  num_workers: 0
  collate_fn:
    _target_: default_collater
    pad_seq_len_divisible: 8
loss_fn: {{_target_: masked_ce}}
optimizer:
  _target_: torch.optim.AdamW
  lr: 1e-4
  betas: [0.9, 0.95]
lr_scheduler: {{lr_decay_style: cosine, lr_warmup_steps: 2}}
clip_grad_norm: {{max_norm: 1.0}}
checkpoint: {{enabled: false}}
"""


@pytest.fixture
def good(tmp_path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **heads}))
    (model / "model.safetensors").touch()
    data = tmp_path / "rows.jsonl"
    data.write_text('{"q": "1+1", "a": "2"}\n')
    path = tmp_path / "c.yaml"
    path.write_text(GOOD.format(model=model, data=data))
    return path


def found(path, *overrides, **options):
    report = validate(load_config(path, overrides), **options)
    return [str(problem).replace(str(path), "c.yaml") for problem in report.problems]


def test_a_good_configuration_has_no_problem_and_nothing_undecided(good):
    report = validate(load_config(good))
    assert report.problems == []
    assert report.deferred == []
    assert report.num_values == 25


def test_deep_agrees(good):
    assert found(good, deep=True) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimzer.lr=1", 'optimzer: unknown section for LLMFinetuneRecipe; did you mean "optimizer"?'),
        ("learning_rate=1", "learning_rate: unknown section for LLMFinetuneRecipe; allowed: "),
        ("optimizer.learning_rate=1", 'optimizer.learning_rate: unknown key for torch.optim.AdamW; did you mean "lr"?'),
        ("dataloader.collate_fn.pad_seq_len_divisable=8", 'default_collater; did you mean "pad_seq_len_divisible"?'),
        ("step_scheduler.num_epoch=1", 'unknown key for `step_scheduler`; did you mean "num_epochs"?'),
        ("lr_scheduler.warmup_steps=1", 'unknown key for `lr_scheduler`; did you mean "lr_warmup_steps"?'),
        (
            "clip_grad_norm.max_nrom=1",
            'clip_grad_norm.max_nrom: unknown key for `clip_grad_norm`; did you mean "max_norm"?',
        ),
        ("optimizer.lr=fast", 'optimizer.lr: "fast" is not a number'),
        ("optimizer.betas=[0.9]", "optimizer.betas: [0.9] is not a list of 2"),
        ("optimizer.amsgrad=1", "optimizer.amsgrad: 1 is not true or false"),
        ("optimizer.params=1", "optimizer.params: is given by the recipe at run time; remove it here"),
        ("seed=x", 'seed: "x" is not a whole number >= 0'),
        ("device=gpu", 'device: "gpu" is not one of "auto", "cpu", "cuda", "mps", "xpu"'),
        ("clip_grad_norm.max_norm=0", "clip_grad_norm.max_norm: 0 is not a number > 0 or null"),
        ("dataloader.num_workers=-1", "dataloader.num_workers: -1 is not a whole number >= 0"),
        ("recipe=LLMFinetunRecipe", "recipe: unknown recipe 'LLMFinetunRecipe'; did you mean \"LLMFinetuneRecipe\"?"),
        ("recipe=os.system", "recipe: unknown recipe 'os.system'"),
        ("~dataset", "dataset: LLMFinetuneRecipe needs a `dataset:` section; add it"),
        (
            "~dataset.column_mapping",
            "dataset: column_mapped needs 'column_mapping'; add `column_mapping:` to this section",
        ),
        (
            "dataset.column_mapping.answer=ans",
            "dataset.column_mapping.answer: the data has no column 'ans'; allowed: a, q",
        ),
        ("dataset.path_or_dataset_id=./no.jsonl", "dataset.path_or_dataset_id: './no.jsonl': no such data file"),
        (
            "model.pretrained_model_name_or_path=./no",
            "'./no': no such model directory; give an existing path, or a hub id",
        ),
        ("model.pretrained_model_name_or_path=pkg://yaml/no", "'pkg://yaml/no': yaml holds no 'no'"),
        (
            "optimizer._target_=torch.optim.AdmW",
            "optimizer._target_: torch.optim has no 'AdmW'; did you mean \"AdamW\"?",
        ),
        ("loss_fn._target_=masked_cee", "no component is called 'masked_cee'; did you mean \"masked_ce\"?"),
        (
            "loss_fn._target_=chat",
            "'chat' is a dataset, but this section needs a loss of (logits, shift_labels, num_label",
        ),
        ("optimizer._target_=torch.load", "'torch.load' is not a subclass of torch.optim.Optimizer"),
        (
            "model._target_=os.system",
            "model._target_: 'os.system' is neither a registered component nor in a known library",
        ),
        (
            "clip_grad_norm._target_=torch.optim.SGD",
            "`clip_grad_norm` takes keys of its own, not a _target_; remove it",
        ),
        ("optimizer=7", "optimizer: must be a mapping of keys, one `key: value` per line"),
        ("transforms={a: 1}", "transforms: must be a list; begin each item with a dash"),
        ("loss_fn={}", "loss_fn: has no _target_; name the class or function that makes it"),
        ("step_scheduler.global_batch_size=10", "10 is not a multiple of local_batch_size 4; 8 is"),
        (
            "step_scheduler.grad_acc_steps=2",
            "stands beside grad_acc_steps, which is another way to say the same; remove one",
        ),
        ("rng.seed=1", "rng.seed: stands beside seed, which says the same; remove one of the two"),
        ("evaluation.exact_match=true", "needs a `validation_dataset:` whose answers it compares; add one, or remove"),
    ],
)
def test_one_mistake_is_one_problem(good, override, message):
    (problem,) = found(good, override)
    assert message in problem
    assert problem.startswith((f"override {override} ", "c.yaml:"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["step_scheduler.max_steps=10", "lr_scheduler.lr_warmup_steps=10"],
            "warms up for 10 steps, but the run has 10",
        ),
        (
            ["distributed={strategy: fsdp2}", "distributed.tp_size=2"],
            "2 does not divide the model's num_key_value_heads = 3",
        ),
        (
            ["model.attn_implementation=paged", "packed_sequence={packed_sequence_size: 64}"],
            "'paged' cannot keep packed documents apart; use one of eager, sdpa, flex_attention",
        ),
        (["quantization={load_in_4bit: true}"], "quantization: codes cannot be trained; add a `peft:` section"),
        (
            ["quantization={}", "peft={_target_: lora}"],
            "quantization: needs load_in_4bit: true or load_in_8bit: true, one",
        ),
        (
            [
                "quantization={load_in_4bit: true}",
                "model.quantization_config={_target_: transformers.BitsAndBytesConfig}",
            ],
            "quantization: stands beside model.quantization_config, which says the same; remove one of the two",
        ),
        (
            ["quantization={load_in_4bit: true}", "model._target_=automodel_core.NeMoAutoModelForCausalLM.from_config"],
            "it needs a model._target_ ending .from_pretrained",
        ),
        (["quantization={bnb_4bit_quant_type: nf3}"], 'bnb_4bit_quant_type: "nf3" is not one of "nf4", "fp4"'),
        (["fp8={recipe_name: rowwize}"], 'fp8.recipe_name: "rowwize" is not one of "rowwise", "rowwise_with_gw_hp", '),
        (["fp8={}", "peft={_target_: lora}"], "with a scale for every row; write recipe_name: rowwise"),
        (
            ["fp8={recipe_name: rowwise, emulate: true}", "peft={_target_: lora}"],
            "fp8.emulate: has no effect under LoRA",
        ),
        (
            ["fp8={recipe_name: rowwise}", "peft={_target_: lora}", "quantization={load_in_8bit: true}"],
            "fp8: stands beside quantization, and a base is stored in one form; remove one of the two",
        ),
        (["fp8={enable_fsdp_float8_all_gather: true}"], "all_gather: needs distributed.strategy: fsdp2, whose gathers"),
        (
            ["compile={}", "distributed={strategy: fsdp2, compile: true}"],
            "compile: stands beside distributed.compile, which says the same; remove one of the two",
        ),
        (["compile={bakend: eager}"], 'compile.bakend: unknown key for `compile`; did you mean "backend"?'),
    ],
)
def test_contradictions(good, overrides, message):
    assert any(message in problem for problem in found(good, *overrides))


def test_processes_have_to_divide_the_batch(good):
    (problem,) = found(good, nproc_per_node=3)
    assert problem.endswith("8 is not a multiple of local_batch_size 4 x 3 processes; 12 is")


def test_triton_is_needed_where_it_is_asked_for(good, monkeypatch):
    import importlib.util

    from automodel_recipes.validation import rules

    real = importlib.util.find_spec
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None if name == "triton" else real(name))
    problems = found(good, "peft={_target_: lora, match_all_linear: true, use_triton: true}")
    assert any("needs triton, which is not installed; pip install 'automodel-kernels[triton]'" in p for p in problems)


@pytest.mark.parametrize(
    ("package", "sections", "message"),
    [
        ("torchao", ["fp8={}"], "fp8: needs torchao, which is not installed; pip install 'automodel-kernels[ao]'"),
        (
            "bitsandbytes",
            ["quantization={load_in_4bit: true}", "peft={_target_: lora}"],
            "quantization: needs bitsandbytes, which is not installed; pip install 'automodel-core[bitsandbytes]'",
        ),
    ],
)
def test_optional_packages_are_named_where_they_are_needed(good, monkeypatch, package, sections, message):
    import importlib.util

    from automodel_recipes.validation import rules

    real = importlib.util.find_spec
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None if name == package else real(name))
    assert [text.rpartition("} ")[2] for text in found(good, *sections)] == [message]


def test_settings_that_only_their_class_can_judge_are_found_deep(good, monkeypatch):
    import importlib.util

    from automodel_recipes.validation import rules

    real = importlib.util.find_spec
    # The missing package would be the first problem, and one is told of a section at a time.
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: name == "torchao" or real(name))
    overrides = ["fp8={enable_fsdp_float8_all_gather: true, recipe_name: rowwise}", "distributed={strategy: fsdp2}"]
    assert [text for text in found(good, *overrides) if "all_gather=True" in text] == []
    (problem,) = found(good, *overrides, deep=True)
    assert (
        "fp8: fp8.enable_fsdp_float8_all_gather=True with recipe_name='rowwise': only 'tensorwise' gathers" in problem
    )


def test_an_optimizer_whose_states_cannot_be_stored_is_refused(good):
    problems = found(good, "optimizer={_target_: torchao.optim.AdamW8bit, lr: 0.001}")
    assert any("optimizer._target_: torchao.optim.AdamW8bit packs its states" in p for p in problems)


def test_a_run_that_keeps_no_weights_is_refused(good):
    problems = found(good, "checkpoint={enabled: false, save_consolidated: false}")
    assert any("checkpoint.save_consolidated: false beside enabled: false keeps no weights" in p for p in problems)
    assert found(good, "checkpoint={enabled: true, save_consolidated: false}") == []


def test_five_planted_errors_with_line_and_column(good):
    lines = good.read_text().splitlines()
    lines[4] = "  global_batchsize: 8"
    lines[18] = "    _target_: default_colater"
    lines[23] = "  lr: quick"
    lines.insert(25, "  wieght_decay: 0.1")
    lines[2] = "device: tpu"
    good.write_text("\n".join(lines) + "\n")
    assert found(good) == [
        'c.yaml:3:9 device: "tpu" is not one of "auto", "cpu", "cuda", "mps", "xpu"',
        "c.yaml:5:3 step_scheduler.global_batchsize: unknown key for `step_scheduler`; "
        'did you mean "global_batch_size"?',
        "c.yaml:19:15 dataloader.collate_fn._target_: no component is called 'default_colater'; "
        'did you mean "default_collater"?',
        'c.yaml:24:7 optimizer.lr: "quick" is not a number',
        'c.yaml:26:3 optimizer.wieght_decay: unknown key for torch.optim.AdamW; did you mean "weight_decay"?',
    ]


def test_an_undecided_target_is_listed_and_bound_deep(good):
    overrides = ["model._target_=transformers.LlamaForCausalLM", "~model.dtype", "~model.pretrained_model_name_or_path"]
    report = validate(load_config(good, overrides))
    assert [item.target for item in report.deferred] == ["transformers.LlamaForCausalLM"]
    (problem,) = found(good, *overrides, deep=True)
    assert problem.endswith("model: transformers.LlamaForCausalLM needs 'config'; add `config:` to this section")


def test_a_named_validation_set_is_a_dataset(good):
    (problem,) = found(good, "validation_dataset_hard={_target_: mock, colour: 1}")
    assert "validation_dataset_hard.colour: unknown key for mock" in problem


def test_an_empty_section_is_an_absent_one(good):
    assert found(good, "peft=") == []


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "holds no weights (*.safetensors, *.bin); give a complete one"),
        ("config.json", "no config.json"),
    ],
)
def test_an_incomplete_model_directory(good, file, message):
    (good.parent / "model" / file).unlink()
    (problem,) = found(good)
    assert problem.startswith("c.yaml:10:34 model.pretrained_model_name_or_path: ")
    assert message in problem


@pytest.mark.parametrize(
    ("name", "head", "place"),
    [("d.csv", "q,ans\n1,2\n", "d.csv"), ("d.tsv", "\ufeffq\tans\n", "d.tsv"), ("e.csv", "q,ans\n", "e*.csv")],
)
def test_columns_of_tables_are_looked_up(good, name, head, place):
    (good.parent / name).write_text(head, encoding="utf-8")
    (problem,) = found(good, f"dataset.path_or_dataset_id={good.parent}/{place}")
    assert problem.endswith("dataset.column_mapping.answer: the data has no column 'a'; did you mean \"ans\"?") or (
        "the data has no column 'a'; allowed: ans, q" in problem
    )


def test_globs_are_files(good):
    assert found(good, f"dataset.path_or_dataset_id={good.parent}/*.jsonl") == []
    (problem,) = found(good, f"dataset.path_or_dataset_id={good.parent}/*.csv")
    assert "no such data file" in problem


def test_an_allowed_target_of_the_users_own(good, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_for_validation.py").write_text("def rows(n: int, tokenizer=None):\n    return list(range(n))\n")
    override = "dataset={_target_: mine_for_validation.rows, n: x}"
    assert "allow it with --allow-target mine_for_validation" in found(good, override)[0]
    report = validate(load_config(good, [override], allow_targets=["mine_for_validation"]))
    assert [problem.message for problem in report.problems] == ['"x" is not a whole number']
