"""What a terminal and a pipe get to see."""

import io

import pytest
from rich.console import Console as RichConsole

from automodel_recipes.loggers.console import Console, middle_left_out

SPANS = [("<|user|>\nWhat is  it?", False), ("A mug.<|end|>", True)]


@pytest.fixture
def piped():
    stream = io.StringIO()
    return Console(stream=stream), stream


@pytest.fixture
def terminal():
    stream = io.StringIO()
    console = Console(stream=stream)
    console._rich = RichConsole(file=stream, force_terminal=True, highlight=False, soft_wrap=True, width=80)
    return console, stream


def test_labels_alone_are_bold(terminal):
    console, stream = terminal
    console.fact("model", "a [bold]name[/]")
    assert stream.getvalue() == "\x1b[1mmodel    \x1b[0ma [bold]name[/]\n"


def test_further_lines_stand_under_the_first(piped):
    console, stream = piped
    console.fact("edit", "one\ntwo")
    assert stream.getvalue() == "edit     one\n         two\n"


def test_trained_text_is_green_on_a_terminal_and_in_guillemets_in_a_pipe(terminal, piped):
    for (console, stream), marked in ((terminal, "\x1b[1;32mA mug.<|end|>\x1b[0m"), (piped, "«A mug.<|end|>»")):
        console.spans("sample", SPANS)
        assert stream.getvalue().endswith(f"{marked}\n")
        assert "<|user|> What is it?" in stream.getvalue()


def test_control_characters_of_data_reach_no_terminal(piped):
    console, stream = piped
    console.spans("sample", [("\x1b]0;owned\x07", True)])
    assert stream.getvalue() == "sample   «\\x1b]0;owned\\x07»\n"


def test_other_ranks_print_nothing():
    stream = io.StringIO()
    console = Console(enabled=False, stream=stream)
    console.fact("a", "b")
    console.spans("a", SPANS)
    console.step(1, 2, {"loss": "1"})
    console.blank()
    assert stream.getvalue() == ""


def test_long_text_keeps_both_ends():
    assert middle_left_out("x" * 50 + "y" * 50, 25) == "x" * 10 + " ... " + "y" * 10
    assert middle_left_out("a\n b ", 25) == "a b "
