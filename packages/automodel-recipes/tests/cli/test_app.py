"""The frame of the command line: help, exit codes, other packages' commands."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import click
import pytest

from automodel_recipes.cli import errors, group, main
from automodel_recipes.cli.app import cli
from automodel_recipes.cli.errors import exit_code


def python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["recipes", "ls"], ["config", "schema"]])
def test_help_imports_neither_torch_nor_transformers(arguments):
    code = (
        "import sys; from automodel_recipes.cli import main; code = main(sys.argv[1:]);"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'rich') if m in sys.modules];"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = python(code, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_every_command_in_its_section(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, verb in group.VERBS.items():
        assert f"{verb.section}:\n" in text
        assert f"  {name} " in text


def commands(command, path=()):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


ALL = {" ".join(path): command for path, command in commands(cli) if path}


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_one_example_and_short_help(name):
    text = ALL[name].help
    assert text.count("Example: automodel-recipes ") == 1
    assert len(text.strip().splitlines()) <= 15


def test_examples_are_not_broken_over_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for arguments in (["--help"], ["train", "--help"], ["config", "show", "--help"]):
        assert main(arguments) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "Example: " in line]
        assert line.endswith((" train demo_lora.yaml", " --nproc-per-node 2", " --provenance"))


def test_no_arguments_print_help_and_exit_2(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("Usage: automodel-recipes [OPTIONS] COMMAND")
    assert captured.err == ""


def test_module_form():
    done = subprocess.run(
        [sys.executable, "-m", "automodel_recipes", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("automodel-recipes, version ")


def test_shell_completion_completes_commands():
    variables = {
        "_AUTOMODEL_RECIPES_COMPLETE": "bash_complete",
        "COMP_WORDS": "automodel-recipes va",
        "COMP_CWORD": "1",
    }
    done = python("from automodel_recipes.cli import main; main([])", env={**os.environ, **variables})
    assert done.stdout == "plain,validate\n"


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class Below(OutOfMemoryError):
    """A subclass."""


class HasCode(Exception):
    exit_code = 6


def named(name):
    return type(name, (Exception,), {})("text")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (named("ConfigError"), 2),
        (Below("x"), 3),
        (MemoryError(), 3),
        (named("DataError"), 4),
        (named("NonFiniteLossError"), 5),
        (HasCode(), 6),
        (named("CheckpointError"), 6),
        (KeyboardInterrupt(), 130),
        (ValueError("x"), 1),
        (KeyError("x"), 1),
    ],
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_the_errors_of_the_packages_have_their_codes():
    from automodel_ckpt.errors import CheckpointError
    from automodel_core.config import ConfigError
    from automodel_data.errors import DataError
    from automodel_recipes.errors import NonFiniteLossError, RunDirectoryError

    kinds = (ConfigError, DataError, NonFiniteLossError, CheckpointError, RunDirectoryError)
    codes = [exit_code(kind.__new__(kind)) for kind in kinds]
    assert codes == [2, 4, 5, 6, 2]


def run_raising(error, monkeypatch, arguments=("boom",)):
    @click.command()
    @click.option("--debug", is_flag=True)
    @click.option("--json", is_flag=True)
    def boom(**_options):
        raise error

    monkeypatch.setattr(group, "_third_party", lambda: {"boom": EntryPoint("boom", "x:y", group.GROUP)})
    monkeypatch.setattr(group, "_load", lambda point: boom)
    return main(list(arguments))


def test_an_unexpected_error_is_one_line_and_a_hint(monkeypatch, capsys):
    error = KeyError("x")
    error.add_note("c.yaml:3:1 model: while building a.b")
    assert run_raising(error, monkeypatch) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: KeyError: 'x'",
        "  c.yaml:3:1 model: while building a.b",
        "run again with --debug for the traceback",
    ]


def test_an_error_for_the_user_is_its_text(monkeypatch, capsys):
    error = named("DataError")
    error.exit_code = 4
    assert run_raising(error, monkeypatch) == 4
    assert capsys.readouterr().err == "error: text\n"


def test_ctrl_c_exits_130(monkeypatch, capsys):
    assert run_raising(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_other_ranks_say_who_they_are(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    run_raising(ValueError("x"), monkeypatch)
    assert capsys.readouterr().err.startswith("[rank 3] error: ValueError: x")


def test_json_errors(monkeypatch, capsys):
    assert run_raising(ValueError("x"), monkeypatch, ["boom", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == [{"message": "ValueError: x", "type": "ValueError"}]


@click.command()
def _hello():
    """Say hello.

    Example: automodel-recipes hello
    """
    click.echo("hello")


def points(**commands):
    return lambda group: [EntryPoint(name, value, group) for name, value in commands.items()]


def test_other_packages_add_commands(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "verbs_of_another.py").write_text(
        "import click\n@click.command()\ndef hello():\n    click.echo('hello')\n"
    )
    monkeypatch.setattr(group, "entry_points", points(hello="verbs_of_another:hello", train="verbs_of_another:hello"))
    assert main(["hello"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "Installed by other packages:\n  hello  verbs_of_another:hello" in text
    assert main(["train", "--help"]) == 0
    assert "Fine-tune" in capsys.readouterr().out, "an installed package replaced one of our commands"


def test_a_command_that_does_not_import_says_why(monkeypatch, capsys):
    monkeypatch.setattr(group, "entry_points", points(broken="no_such_module_here:x"))
    assert main(["broken"]) == 1
    assert "command 'broken' (no_such_module_here:x) does not import: ModuleNotFoundError" in capsys.readouterr().err
    assert main(["--help"]) == 0


def test_output_into_a_closed_pipe_is_no_traceback():
    line = f"{sys.executable} -m automodel_recipes config schema | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_every_table_entry_is_a_command():
    for name in group.VERBS:
        assert isinstance(cli.get_command(click.Context(cli), name), click.Command)
    assert set(errors._CODES_BY_NAME.values()) == {2, 3, 4, 5, 6, 130}
