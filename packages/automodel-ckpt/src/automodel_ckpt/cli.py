"""The console script ``automodel-ckpt``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 2 for bad usage, 6 for a checkpoint error."""
    options = _parser().parse_args(arguments)
    from automodel_ckpt.errors import CheckpointError

    try:
        result, text = options.run(options)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"automodel-ckpt: {error}", file=sys.stderr)  # noqa: T201 - a command line prints
        return getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 6)
    print(json.dumps(result) if options.json else text)  # noqa: T201 - a command line prints
    return 1 if options.command == "diff" and result["differences"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="automodel-ckpt", description="Inspect, check and convert checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable, help: str, *places: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        for place in places:
            command.add_argument(place.lower(), metavar=place, type=_place)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
        return command

    add("ls", _ls, "list the checkpoints of a run", "ROOT")
    about = "a checkpoint: compare every byte with its hash; an exported model or adapter: load it and compare logits"
    command = add("verify", _verify, about, "PATH")
    command.add_argument("--level", choices=("size", "hash"), default="hash", help="of a checkpoint")
    command.add_argument("--base", help="of an adapter: the base model, where it is not where its config says")
    for name in ("consolidate", "export"):
        command = add(name, _consolidate, "write a Hugging Face directory, in bounded memory", "PATH", "OUT")
        command.add_argument("--assets", type=Path, help="model directory with config.json, tokenizer, ...")
        command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
        command.add_argument("--shard-size", default="5GB")
    add("merge", _merge, "merge a LoRA adapter into its base model", "BASE", "ADAPTER", "OUT")
    add("diff", _diff, "compare two checkpoints tensor by tensor (exit 1 if they differ)", "ONE", "OTHER")
    command = add("gc", _gc, "delete leftovers of dead runs and all but the newest checkpoints", "ROOT")
    command.add_argument("--keep-last", type=int, default=2)
    command = add("import", _import, "take over a checkpoint of torch DCP or NeMo Automodel", "SOURCE", "ROOT")
    command.add_argument("--step", type=int, help="default: the one in NeMo's name, epoch_E_step_S")
    command.add_argument("--prefix", default="", help="take names that start with this, without it")
    return parser


def _place(text: str) -> str | Path:
    """A path, or the URL of an object store."""
    return text if "://" in text else Path(text)


def _ls(options: argparse.Namespace) -> tuple[Any, str]:
    from automodel_ckpt import layout
    from automodel_ckpt.directory import check_sizes, open_directory, read_manifest, steps
    from automodel_ckpt.errors import CheckpointError

    directory, rows = open_directory(options.root), []
    for step in steps(directory):
        name = layout.step_name(step)
        try:
            manifest = read_manifest(directory, name)
            check_sizes(directory, name, manifest)
            size = sum(record.bytes for record in manifest.files.values())
            rows.append({"name": name, "complete": True, "bytes": size, "metrics": manifest.metrics})
        except CheckpointError as error:
            rows.append({"name": name, "complete": False, "problem": str(error)})
    lines = [_ls_line(row) for row in rows] or [f"no checkpoints in {options.root}"]
    return rows, "\n".join(lines)


def _ls_line(row: dict[str, Any]) -> str:
    if not row["complete"]:
        return f"{row['name']}  INCOMPLETE  {row['problem']}"
    metrics = " ".join(f"{name}={value:.6g}" for name, value in row["metrics"].items())
    return f"{row['name']}  {row['bytes'] / 2**20:10.1f} MiB  {metrics}".rstrip()


def _verify(options: argparse.Namespace) -> tuple[Any, str]:
    from automodel_ckpt.verification import verify

    if isinstance(options.path, Path) and _is_export(options.path):
        return _verify_export(options)
    report = verify(options.path, options.level)
    result = {"path": str(report.path), "level": report.level, "files": report.num_files, "bytes": report.bytes_read}
    return result, f"{report.path}: intact ({report.num_files} files, {report.bytes_read / 2**20:.1f} MiB read)"


def _is_export(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


def _verify_export(options: argparse.Namespace) -> tuple[Any, str]:
    from automodel_ckpt.hf.readback import read_back

    report = read_back(options.path, base=options.base)
    result = {"path": str(options.path), "kind": report.kind, "tensors": report.num_tensors}
    result["max_difference"] = report.max_difference
    logits = "no logits were kept to compare"
    if report.max_difference is not None:
        logits = f"logits differ by at most {report.max_difference:.2g} from those of the trained model"
    return result, f"{options.path}: {report.kind} of {report.num_tensors} tensors, loads whole; {logits}"


def _consolidate(options: argparse.Namespace) -> tuple[Any, str]:
    import torch

    from automodel_ckpt.hf.consolidate import consolidate

    dtype = getattr(torch, options.dtype) if options.dtype else None
    path = consolidate(options.path, options.out, assets=options.assets, dtype=dtype, shard_size=options.shard_size)
    return {"directory": str(path)}, f"wrote {path}"


def _merge(options: argparse.Namespace) -> tuple[Any, str]:
    from automodel_ckpt.hf.merge import merge

    changed = merge(options.base, options.adapter, options.out)
    return {"directory": str(options.out), "changed": changed}, f"wrote {options.out}: {len(changed)} weights changed"


def _diff(options: argparse.Namespace) -> tuple[Any, str]:
    from automodel_ckpt.contents import Contents
    from automodel_ckpt.hf.merge import equal_tensors

    one, other, found = Contents(options.one), Contents(options.other), []
    for section in sorted(one.manifest.sections.keys() | other.manifest.sections.keys()):
        mine, theirs = (c.manifest.sections.get(section) for c in (one, other))
        names = [set(s.tensors) if s else set() for s in (mine, theirs)]
        found += [f"{section} {name}: only in {options.one}" for name in sorted(names[0] - names[1])]
        found += [f"{section} {name}: only in {options.other}" for name in sorted(names[1] - names[0])]
        for name in sorted(names[0] & names[1]):
            if not equal_tensors(one.tensor(section, name), other.tensor(section, name)):
                found.append(f"{section} {name}: differs")
    return {"differences": found}, "\n".join(found) or "equal"


def _gc(options: argparse.Namespace) -> tuple[Any, str]:
    from automodel_ckpt.retention import Keep, gc

    deleted = gc(options.root, keep=Keep(last=options.keep_last))
    return {"deleted": deleted}, "\n".join(f"deleted {name}" for name in deleted) or "nothing to delete"


def _import(options: argparse.Namespace) -> tuple[Any, str]:
    from automodel_ckpt.importing import import_checkpoint

    path, left_out = import_checkpoint(options.source, options.root, step=options.step, prefix=options.prefix)
    text = f"wrote {path}" + (f"; left out {len(left_out)}: {', '.join(left_out[:5])}" if left_out else "")
    return {"path": str(path), "left_out": left_out}, text


if __name__ == "__main__":
    sys.exit(main())
