"""Progress of long work, with a clock that the test turns."""

import io

import pytest
from rich.console import Console as RichConsole

from automodel_recipes.loggers import progress
from automodel_recipes.loggers.progress import ProgressDisplay


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def piped(clock):
    lines = []
    return ProgressDisplay(RichConsole(file=io.StringIO()), lambda label, text: lines.append((label, text))), lines


def test_a_pipe_gets_a_line_every_ten_seconds_with_what_is_left(piped, clock):
    display, lines = piped
    for done in range(0, 101, 5):
        display("tokenise", done, 100)
        clock[0] += 2
    assert lines == [
        ("tokenise", "25 %, 10s, eta 30s"),
        ("tokenise", "50 %, 20s, eta 20s"),
        ("tokenise", "75 %, 30s, eta 10s"),
        ("tokenise", "100 %, 40s"),
    ]


def test_short_work_is_not_spoken_of(piped, clock):
    display, lines = piped
    for done in range(11):
        display("save", done, 10)
        clock[0] += 0.5
    assert lines == []


def test_work_that_begins_again_has_its_own_time(piped, clock):
    display, lines = piped
    display("load", 0, 10)
    clock[0] += 9
    display("load", 10, 10)
    display("load", 1, 10)
    clock[0] += 9
    display("load", 5, 10)
    assert lines == []


def test_a_terminal_gets_a_bar_that_goes_away(clock):
    stream = io.StringIO()
    console = RichConsole(file=stream, force_terminal=True, width=80)
    display = ProgressDisplay(console, lambda *_: pytest.fail("a line on a terminal"))
    display("save", 0, 10)
    assert display._bar is None
    clock[0] += 1
    display("save", 3, 10)
    assert display._bar is not None
    assert "save" in stream.getvalue()
    display("save", 10, 10)
    assert display._bar is None
