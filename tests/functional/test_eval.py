"""`eval` on a run, checkpoint, adapter, model and configuration: the numbers of training, and row by row."""

import json
from pathlib import Path

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes import TrainOptions
from automodel_recipes.cli import main
from automodel_recipes.run import run as train

LORA = {"_target_": "lora", "target_modules": ["*_proj"], "dim": 4, "alpha": 8}


@pytest.fixture
def rows(tmp_path, chat_rows):
    """Eight rows that training knows, one of them twice, a prompt with another answer, and a mislabelled one."""
    known = [json.loads(line) for line in chat_rows.read_text().splitlines()][:8]
    other, wrong = json.loads(json.dumps(known[1])), json.loads(json.dumps(known[2]))
    other["messages"][1]["content"] = "xxxxx"
    wrong["messages"] = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "QZ!?QZ"}]
    path = tmp_path / "val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*known, known[0], other, wrong]))
    return path


@pytest.fixture
def config(tiny_config, rows, tmp_path):
    tiny_config["step_scheduler"]["num_epochs"] = 3
    tiny_config["validation_dataset"] = {**tiny_config["dataset"], "path_or_dataset_id": str(rows)}
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "run"), "read_back": False}
    return tiny_config


def finished(config):
    train(config_from_dict(config), TrainOptions(quiet=True))
    folder = config["checkpoint"]["checkpoint_dir"]
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return folder, [line for line in lines if line["kind"] == "val"]


@pytest.fixture
def evaluate(capsys):
    def run(*words, code=0):
        capsys.readouterr()
        got = main(["eval", *map(str, words), "--json"])
        shown = capsys.readouterr()
        assert got == code, shown.out + shown.err
        return json.loads(shown.out)

    return run


@pytest.mark.parametrize("peft", [None, LORA])
def test_a_run_its_checkpoint_and_its_final_weights_measure_what_training_measured(config, evaluate, peft):
    if peft is not None:
        config["peft"] = peft
        config["optimizer"]["lr"] = 2.0
    run, logged = finished(config)
    first, last = logged[0], logged[-1]
    assert last["loss"] < first["loss"] - 0.1
    for place in (run, f"{run}@latest", f"{run}/final"):
        got = evaluate(place)["sets"]["val"]
        for key in ("loss", "perplexity", "token_accuracy", "bits_per_byte", "num_label_tokens"):
            assert got[key] == pytest.approx(last[key], rel=1e-5), (place, key)


def test_a_configuration_is_measured_as_it_is_before_the_first_step(config, evaluate, write_yaml):
    _, logged = finished(config)
    path = write_yaml(config)
    assert evaluate(path)["sets"]["val"]["loss"] == pytest.approx(logged[0]["loss"], rel=1e-6)
    model = config["model"]["pretrained_model_name_or_path"]
    assert evaluate(model, "--config", path)["sets"]["val"]["loss"] == pytest.approx(logged[0]["loss"], rel=1e-6)


def test_exact_match_counts_answers_and_writes_them(config, evaluate, tmp_path):
    run, _ = finished(config)
    got = evaluate(run, "--exact-match", "--num-rows", 4, "-o", tmp_path / "answers.jsonl")["sets"]["val"]
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert got["num_rows"] == len(answers) == 4
    assert got["exact_match"] == sum(a["generated"].strip() == a["reference"].strip() for a in answers) / 4
    assert [a["exact"] for a in answers] == [a["generated"].strip() == a["reference"].strip() for a in answers]


def test_rows_are_ranked_and_doubles_are_named(config, evaluate, tmp_path):
    run, _ = finished(config)
    ranked = evaluate(run, "--per-row", "--top", 3, "-o", tmp_path / "rows.jsonl")
    assert ranked["num_rows"] == 11
    assert len(ranked["rows"]) == 3
    assert ranked["rows"][0]["row"] == 10
    assert ranked["rows"][0]["answer"] == "Q Z ! ? Q Z"
    every = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in every] == sorted((row["loss"] for row in every), reverse=True)
    notes = {row["row"]: row["note"] for row in every if row["note"]}
    # Prompts of the training rows repeat every five rows, with other answers.
    others = {row: f"same prompt as row {first}, other answer" for row, first in ((5, 0), (6, 1), (7, 2), (9, 1))}
    assert notes == {8: "same as row 0", **others}
    whole = evaluate(run)["sets"]["val"]
    total = sum(row["loss"] * row["num_label_tokens"] for row in every)
    assert total / whole["num_label_tokens"] == pytest.approx(whole["loss"], rel=1e-5)


TASK = """
task: tiny_counting
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: ["x", "Q"]
metric_list: [{metric: acc}]
"""


@pytest.mark.more
def test_lm_eval_runs_a_local_task(config, evaluate, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval)")
    run, _ = finished(config)
    (tmp_path / "task").mkdir()
    questions = [{"question": "count " + "abc " * n} for n in range(1, 7)]
    (tmp_path / "task" / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (tmp_path / "task" / "t.yaml").write_text(TASK.replace("FILE", str(tmp_path / "task" / "q.jsonl")))
    got = evaluate(run, "--lm-eval", "tiny_counting", "--lm-eval-path", tmp_path / "task")["tasks"]
    assert got["tiny_counting"]["acc,none"] == 1.0  # training has only seen x
    refused = evaluate(run, "--lm-eval", "no_such", "--lm-eval-path", tmp_path / "task", code=2)
    assert "lm-eval knows no task no_such" in refused["problems"][0]["message"]


def test_what_cannot_be_measured_is_told(config, evaluate, write_yaml, tmp_path, tiny_model):
    def message(*words):
        return evaluate(*words, code=2)["problems"][0]["message"]

    assert "belongs to no run" in message(tiny_model)
    config.pop("validation_dataset")
    assert "has no validation_dataset" in message(write_yaml(config))
    assert "name one by --config" in message(tiny_model, "seed=1")
