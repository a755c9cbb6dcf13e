"""The README's Python blocks run, and print what it says they print."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.skipif("TRITON_INTERPRET" in __import__("os").environ, reason="the README shows a machine without kernels")
def test_blocks_run_in_order_and_print_what_is_shown(capsys):
    pytest.importorskip("torchao", reason="torchao is not installed")
    scope: dict = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, str(README), "exec"), scope)
        else:
            assert capsys.readouterr().out.strip() == text.strip()
