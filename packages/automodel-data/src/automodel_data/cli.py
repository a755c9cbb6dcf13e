"""The ``automodel-data`` command: look at data, check it, and tidy the cache."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from automodel_data.errors import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 4 for data that cannot be used or that ``--strict`` faults."""
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except DataError as error:
        sys.stderr.write(f"automodel-data: {error}\n")
        return DataError.exit_code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="automodel-data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="print rows, trained tokens coloured")
    show.add_argument("--rows", type=int, default=3, help="how many (default 3)")
    show.add_argument("--start", type=int, default=0, help="the first of them (default 0)")
    show.set_defaults(run=_show)
    check = commands.add_parser("check", help="figures, and what is wrong")
    check.add_argument("--strict", action="store_true", help="exit with 4 when something is wrong")
    check.add_argument("--pack-size", type=int, help="forecast packing at this many tokens")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--bad-rows", type=Path, help="write the bad rows there, as JSON lines")
    check.set_defaults(run=_check)
    for command in (show, check):
        _add_data_options(command)
    cache = commands.add_parser("cache", help="list or remove cached tokens").add_subparsers(
        required=True, metavar="ACTION"
    )
    cache.add_parser("ls", help="list entries, newest first").set_defaults(run=_cache_ls)
    remove = cache.add_parser("rm", help="remove entries")
    remove.add_argument("key", help="an entry's key, or how it begins")
    remove.set_defaults(run=_cache_rm)
    return parser


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", help="file, directory, glob, URL or hub id")
    command.add_argument("--tokenizer", required=True, help="directory or hub id of the tokenizer")
    command.add_argument("--split", default="train")
    command.add_argument(
        "--columns", help="column mapping, such as question=q,answer=a for questions, or messages=dialog for chats"
    )
    command.add_argument("--text-column", help="the data is plain text in this column, for pretraining")
    command.add_argument("--seq-length", type=int, help="most tokens of a row")
    command.add_argument(
        "--overflow", default="drop", help="for longer rows: drop, truncate_right, truncate_left, error"
    )
    command.add_argument("--mask", default="assistant", help="assistant, last_turn or all")
    command.add_argument("--chat-template", type=Path, help="a Jinja file in place of the tokenizer's template")
    command.add_argument("--limit", type=int, help="look at the first rows only")


def _dataset(options: argparse.Namespace) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from automodel_data import ChatDataset, ColumnMappedTextInstructionDataset, TextPretrainDataset
    from automodel_data.rows import COLUMNS

    try:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no tokenizer is found at {options.tokenizer!r}: {error}. Give a directory or hub id."
        ) from None
    if options.chat_template:
        if not options.chat_template.is_file():
            raise DataError(f"{options.chat_template} is not a file. Give a Jinja file, or leave --chat-template out.")
        tokenizer.chat_template = options.chat_template.read_text(encoding="utf-8")
    # Looking at data must not stop at the first bad rows: they are what one wants to see.
    common = {"split": options.split, "max_bad_fraction": 1.0, "limit_dataset_samples": options.limit}
    if options.text_column:
        length = options.seq_length or 1024
        dataset: Any = TextPretrainDataset(
            options.data, tokenizer, seq_length=length, text_column=options.text_column, **common
        )
        return dataset, tokenizer
    common |= {"seq_length": options.seq_length, "overflow": options.overflow}
    mapping = dict(pair.partition("=")[::2] for pair in options.columns.split(",")) if options.columns else {}
    if mapping and not set(mapping) & set(COLUMNS):
        return ColumnMappedTextInstructionDataset(options.data, mapping, tokenizer, **common), tokenizer
    return ChatDataset(options.data, tokenizer, mask=options.mask, column_mapping=mapping, **common), tokenizer


def _show(options: argparse.Namespace) -> int:
    from automodel_data.inspect import format_rows

    dataset, tokenizer = _dataset(options)
    rows = range(options.start, options.start + options.rows)
    sys.stdout.write(format_rows(dataset, tokenizer, rows=rows, color=sys.stdout.isatty()) + "\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    from automodel_data.inspect import format_summary, problems, summarise

    dataset, tokenizer = _dataset(options)
    summary = summarise(dataset, tokenizer, pack_size=options.pack_size)
    found = problems(summary, expect_stop=not options.text_column)
    if options.bad_rows:
        dataset.report.write_bad_rows(options.bad_rows)
    if options.json:
        sys.stdout.write(json.dumps({**summary.to_dict(), "problems": found}) + "\n")
    else:
        bad = [str(record) for record in dataset.report.bad_rows[:10]]
        lines = [format_summary(summary), *(f"bad row     {row}" for row in bad)]
        lines += [f"problem     {text}" for text in found] or ["no problem found"]
        sys.stdout.write("\n".join(lines) + "\n")
    return DataError.exit_code if found and options.strict else 0


def _cache_ls(options: argparse.Namespace) -> int:
    from automodel_data.cache import cache_root, entries

    lines = [
        f"{entry.key}  {entry.num_bytes / 2**20:9.1f} MiB  {datetime.fromtimestamp(entry.modified):%Y-%m-%d %H:%M}"
        for entry in entries()
    ]
    sys.stdout.write("\n".join(lines or [f"nothing in {cache_root()}"]) + "\n")
    return 0


def _cache_rm(options: argparse.Namespace) -> int:
    from automodel_data.cache import remove

    sys.stdout.write(f"removed {remove(options.key)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
