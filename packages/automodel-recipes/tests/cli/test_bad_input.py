"""Bad input through the real command line: one line with its place, exit 2, no traceback."""

import json

import pytest

from automodel_recipes.cli import main

HEAD = "model: {_target_: torch.nn.Linear, in_features: 1, out_features: 1}\n"
DATA = "dataset: {_target_: mock}\n"


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a command on a file; gives the exit code, stdout and the lines of stderr with the file's name shortened."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANK", raising=False)

    def _run(content, *arguments, command=("validate",), name="c.yaml"):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        code = main([*command, str(path), *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, [line.replace(str(path), "c") for line in captured.err.splitlines()]

    return _run


CASES = {
    "missing file": (None, [], "c: no such file; give the path of a YAML file"),
    "not a mapping": (
        "- a\n",
        [],
        "c:1:1: a configuration is a mapping of sections such as model: and dataset:, not a list or a single value",
    ),
    "misspelt key at depth 3": (
        HEAD + DATA + "dataloader:\n  collate_fn:\n    _target_: default_collater\n    pad_seq_len_divisble: 8\n",
        [],
        "c:6:5 dataloader.collate_fn.pad_seq_len_divisble: unknown key for default_collater; "
        'did you mean "pad_seq_len_divisible"?',
    ),
    "wrong type": (
        HEAD + DATA + "optimizer:\n  _target_: torch.optim.SGD\n  momentum: [1]\n",
        [],
        "c:5:13 optimizer.momentum: [1] is not a number",
    ),
    "missing required keyword": (
        "model:\n  _target_: torch.nn.Linear\n  in_features: 1\n" + DATA,
        [],
        "c:2:3 model: torch.nn.Linear needs 'out_features'; add `out_features:` to this section",
    ),
    "unknown target": (
        HEAD + DATA + "optimizer:\n  _target_: torch.optim.AdamWW\n",
        [],
        "c:4:13 optimizer._target_: torch.optim has no 'AdamWW'; did you mean \"AdamW\"?",
    ),
    "duplicate key": (
        HEAD + DATA + "seed: 1\nseed: 2\n",
        [],
        "c:4:1 seed: duplicate key, first given on line 3; keep one of the two",
    ),
    "tab": ("model:\n\ta: 1\n", [], "c:2:1: a tab cannot indent YAML; use spaces"),
    "anchor loop": (
        "model: &a {b: *a}\n",
        [],
        "c:1:8 model.b: an anchor contains itself; an alias cannot stand inside its own anchor",
    ),
    "10 MB": (
        b"# " + b"x" * 10_000_000,
        [],
        "c: larger than 1 MiB; a configuration holds settings: keep data in files of its own",
    ),
    "not UTF-8": (b"seed: \xff\n", [], "c:1:7: byte 0xff is not UTF-8; save the file as UTF-8"),
    "override of an unknown key": (
        HEAD + DATA,
        ["step_scheduler.max_stepz=3"],
        "override step_scheduler.max_stepz=3 step_scheduler.max_stepz: unknown key for `step_scheduler`; "
        'did you mean "max_steps"?',
    ),
    "missing model directory": (
        "model:\n  _target_: automodel_core.NeMoAutoModelForCausalLM.from_pretrained\n"
        "  pretrained_model_name_or_path: ./nowhere\n" + DATA,
        [],
        "c:3:34 model.pretrained_model_name_or_path: './nowhere': no such model directory; "
        "give an existing path, or a hub id",
    ),
    "missing data file": (
        HEAD + "dataset:\n  _target_: text_pretrain\n  path_or_dataset_id: nowhere.jsonl\n",
        [],
        "c:4:23 dataset.path_or_dataset_id: 'nowhere.jsonl': no such data file; give an existing path, or a hub id",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["validate", "train"])
def test_one_line_and_exit_2(run, case, command):
    content, arguments, expected = CASES[case]
    code, out, lines = run(content, *arguments, command=(command,))
    assert code == 2
    assert expected in lines
    assert out == ""


def test_unreadable(run, tmp_path):
    (tmp_path / "d.yaml").mkdir()
    code, _, lines = run(None, name="d.yaml")
    assert (code, lines) == (2, ["c: cannot be read (Is a directory); give the path of a readable YAML file"])


def test_two_independent_errors_are_both_listed(run):
    code, _, lines = run(HEAD + DATA + "seeed: 1\nclip_grad_norm:\n  max_norm: big\n")
    assert code == 2
    assert lines == [
        'c:3:1 seeed: unknown section for LLMFinetuneRecipe; did you mean "seed"?',
        'c:5:13 clip_grad_norm.max_norm: "big" is not a number > 0 or null',
        "2 errors",
    ]


def test_an_import_that_fails_inside_a_target_shows_its_cause(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_a_package.py").write_text("from no_such_dependency_at_all import gone\n")
    content = "model:\n  _target_: half_a_package.gone\n" + DATA
    code, _, lines = run(content, "--deep", "--allow-target", "half_a_package")
    assert code == 2
    cause = "ModuleNotFoundError: No module named 'no_such_dependency_at_all'"
    assert f"c:2:13 model._target_: 'half_a_package.gone' does not import: {cause}" in lines


def test_json_configurations_are_accepted(run):
    model = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    mock = {"_target_": "mock"}
    code, out, lines = run(json.dumps({"model": model, "dataset": mock}, indent="\t"), name="c.json")
    assert (code, lines) == (0, [])
    assert out.startswith("ok ")


def test_errors_as_json(run):
    code, out, lines = run(HEAD + DATA + "seed: x\n", "--json")
    assert (code, lines) == (2, [])
    report = json.loads(out)
    (problem,) = report["problems"]
    assert (problem["line"], problem["column"], problem["path"]) == (3, 7, "seed")
    assert report["exit_code"] == 2


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["validate", str(tmp_path / "no.yaml"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: no command 'trian'; did you mean \"train\"?"),
        (["train"], "error: Missing argument 'CONFIG'."),
        (["train", "c.yaml", "--max-stpes", "3"], 'error: no option --max-stpes; did you mean "--max-steps"?'),
        (["train", "c.yaml", "--max-steps", "x"], "error: Invalid value for '--max-steps'"),
        (["--nope"], "error: No such option '--nope'."),
        (["recipes", "cp", "no_such_recipe"], "error: no shipped recipe 'no_such_recipe'"),
        (
            ["config", "explain", "optimzer"],
            "error: no section 'optimzer' in LLMFinetuneRecipe; did you mean \"optimizer\"?",
        ),
        (["config", "schema", "--recipe", "X"], "error: no recipe 'X'"),
    ],
)
def test_usage_errors_exit_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
