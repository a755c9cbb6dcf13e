"""A rank's process ends after everything that registered for its end, and before the interpreter is torn down."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, threading, time

class Witness:
    def __del__(self):
        sys.stderr.write("torn down\\n")

def command(arguments, **_):
    atexit.register(print, "tracker finished")
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread joined"))).start()
    print("command", *arguments)
    {outcome}

from automodel_recipes.cli import app
app.cli.main = command
witness = [Witness()]
sys.argv = ["automodel-recipes", "train"]
sys.exit(app.main())
"""
RANK = {"RANK": "0", "WORLD_SIZE": "2"}


def run(outcome: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in RANK} | environment
    script = SCRIPT.format(outcome=outcome)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("outcome", "code"), [("return 0", 0), ("return 130", 130), ("raise SystemExit(7)", 1)])
def test_a_rank_finishes_its_threads_and_handlers_and_skips_the_teardown(outcome, code):
    done = run(outcome, RANK)
    assert done.stdout.splitlines() == ["command train", "thread joined", "tracker finished"]
    assert "torn down" not in done.stderr
    assert done.returncode == code


def test_a_process_of_its_own_is_torn_down_as_usual():
    done = run("return 0", {})
    assert done.stdout.splitlines() == ["command train", "thread joined", "tracker finished"]
    assert "torn down" in done.stderr
    assert done.returncode == 0
