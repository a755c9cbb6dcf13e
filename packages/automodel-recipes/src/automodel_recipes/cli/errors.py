"""From an exception to what the user reads and the exit code: one line per problem, no traceback."""

import json
import os
import sys
import traceback
from typing import Any

import click

# By class name, so that a message costs no import of torch or of the leaf that raised.
_CODES_BY_NAME = {
    "ConfigError": 2,
    "OutOfMemoryError": 3,
    "MemoryError": 3,
    "DataError": 4,
    "NonFiniteLossError": 5,
    "CheckpointError": 6,
    "KeyboardInterrupt": 130,
}


def exit_code(error: BaseException) -> int:
    """The exit code of an exception: its own ``exit_code``, else by the name of its class or of a base."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    for base in type(error).__mro__:
        if base.__name__ in _CODES_BY_NAME:
            return _CODES_BY_NAME[base.__name__]
    return 1


def report(error: BaseException, *, debug: bool, as_json: bool) -> int:
    """Print an exception for the user and return the exit code.

    Args:
        error: what a command raised.
        debug: print the traceback as well.
        as_json: print one JSON object on stdout instead of lines on stderr.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        error = KeyboardInterrupt()
    if debug:
        traceback.print_exception(error)
    code = exit_code(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        sys.stdout.write(error.format_message() + "\n")
        return code
    if as_json:
        sys.stdout.write(json.dumps({"ok": False, "exit_code": code, "problems": _as_objects(error)}) + "\n")
    elif isinstance(error, click.UsageError) and error.ctx is not None:
        _write(error.ctx.get_usage())
        _write(f"error: {error.format_message()}")
    else:
        for line in _lines(error, code, debug=debug):
            _write(line)
    return code


def _write(line: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"{line}\n" if rank == "0" else f"[rank {rank}] {line}\n")


def _lines(error: BaseException, code: int, *, debug: bool) -> list[str]:
    problems = getattr(error, "problems", None)
    if problems:
        count = [f"{len(problems)} errors"] if len(problems) > 1 else []
        return [*map(str, problems), *count]
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    lines = [f"error: {_message(error)}", *_notes(error)]
    if code == 1 and not debug:
        lines.append("run again with --debug for the traceback")
    return lines


def _message(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    text = " ".join(str(error).split())
    # An exception that was not written for users is told with its class: `KeyError: 'x'`, not `'x'`.
    known = hasattr(error, "exit_code")
    return text if known and text else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _notes(error: BaseException) -> list[str]:
    return [f"  {note}" for note in getattr(error, "__notes__", [])]


def _as_objects(error: BaseException) -> list[dict[str, Any]]:
    problems = getattr(error, "problems", None)
    if not problems:
        return [{"message": _message(error), "type": type(error).__name__}]
    names = ("file", "line", "column", "path", "message")
    return [{name: getattr(problem, name) for name in names} for problem in problems]
