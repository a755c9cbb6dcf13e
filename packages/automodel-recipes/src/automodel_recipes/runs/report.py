"""One page about a run: figures, curves, answers, configuration with its origins, data, checkpoints, environment."""

import shlex
from pathlib import Path
from typing import Any

from automodel_recipes.errors import UnusableInputError
from automodel_recipes.loggers.console import count, duration
from automodel_recipes.runs import html
from automodel_recipes.runs.curves import draw
from automodel_recipes.runs.diff import leaves
from automodel_recipes.runs.folder import RunFolder
from automodel_recipes.text_files import write_text

_MAX_SAMPLES = 12
_EVENTS = ("resume", "warning", "nonfinite", "spike", "early_stop", "end")


def write_report(run: RunFolder, path: Path) -> None:
    """Write the report as one HTML file that needs no network.

    Raises: UnusableInputError: the file cannot be written.
    """
    try:
        write_text(path, report(run))
    except OSError as error:
        raise UnusableInputError(f"cannot write {path}: {error.strerror}. Choose another -o.") from error


def report(run: RunFolder) -> str:
    """The report as HTML."""
    record = run.record
    name = run.path.resolve().name
    status = str(record["status"])
    lead = f"{record.get('recipe', '')} in {run.path.resolve()}"
    title = f'<h1>{html.escape(name)} <span class="badge {html.escape(status)}">{html.escape(status)}</span></h1>'
    return html.page(
        f"{name}: {status}",
        [
            title,
            f'<p class="lead">{html.escape(lead)}{html.escape(_why(record))}</p>',
            html.tiles(_figures(run)),
            html.section("Curves", _curves(run)),
            html.section("Validation", _validation(run)),
            html.section("Answers", _samples(run)),
            html.section("What happened", _events(run)),
            html.section("Data", _facts(record.get("data"))),
            html.section("Model", _model(record)),
            html.section("Configuration", _configuration(record)),
            html.section("Checkpoints", _checkpoints(run)),
            html.section("Environment", _environment(record)),
        ],
    )


def _why(record: dict[str, Any]) -> str:
    end = record.get("end") or {}
    return f" · {end['reason']} (exit code {end.get('exit_code')})" if end.get("reason") else ""


def _figures(run: RunFolder) -> list[tuple[str, str]]:
    summary = run.record.get("summary") or {}
    figures = [("optimizer steps", f"{run.last_step:,}")]
    if summary.get("seconds") is not None:
        figures.append(("time", duration(summary["seconds"])))
    for label, name in (("last training loss", "train/loss"), ("best validation loss", "val/loss")):
        value = run.best(name) if label.startswith("best") else run.last(name)
        if value is not None:
            figures.append((label, f"{value:.4g}"))
    shown = (
        ("token accuracy", "val/token_accuracy", lambda v: f"{100 * v:.1f} %"),
        ("bits per byte", "val/bits_per_byte", lambda v: f"{v:.3f}"),
        ("exact match", "exact_match/exact_match", lambda v: f"{100 * v:.1f} %"),
        ("tokens per second", "train/tokens_per_s", count),
        ("MFU", "train/mfu_percent", lambda v: f"{v:.1f} %"),
        ("peak memory", "train/peak_memory_gib", lambda v: f"{v:.2f} GiB"),
    )
    figures += [(label, form(v)) for label, name, form in shown if (v := run.last(name)) is not None]
    return [*figures, ("processes", str(run.record.get("world_size", 1)))]


def _curves(run: RunFolder) -> str:
    if not run.series:
        return ""
    return html.picture(draw({"run": run.series}, form="svg"), "image/svg+xml", alt="curves", style="curves")


def _validation(run: RunFolder) -> str:
    rows = run.rows("val")
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("kind", "time", "step", "name")))
    cells = [[row["step"], row.get("name", "val"), *(_short(row.get(key)) for key in keys)] for row in rows[-40:]]
    return html.table(["step", "set", *keys], cells)


def _samples(run: RunFolder) -> str:
    samples = run.samples
    if not samples:
        return ""
    last = max(sample.get("step", 0) for sample in samples)
    newest = [sample for sample in samples if sample.get("step", 0) == last]
    earlier = {_row_of(sample): sample for sample in samples if sample.get("step", 0) != last}
    shown = [_sample(run.path, sample, earlier.get(_row_of(sample))) for sample in newest[:_MAX_SAMPLES]]
    more = f"<p>{len(newest) - _MAX_SAMPLES} more in samples.jsonl.</p>" if len(newest) > _MAX_SAMPLES else ""
    return f"<p class=lead>Greedy answers at step {last}.</p>" + "".join(shown) + more


def _row_of(sample: dict[str, Any]) -> tuple[str, ...]:
    """What tells rows apart: many ask the same about other pictures."""
    return (str(sample.get("prompt")), str(sample.get("reference")), *map(str, sample.get("images", [])))


def _sample(run: Path, sample: dict[str, Any], before: dict[str, Any] | None) -> str:
    pictures = "".join(html.picture_of_run(run, str(name)) for name in sample.get("images", []))
    exact = bool(sample.get("exact"))
    lines = [("prompt", sample.get("prompt"), "")]
    if before is not None and before.get("generated") != sample.get("generated"):
        lines.append((f"answer at step {before.get('step')}", before.get("generated"), ""))
    lines.append(("answer" + (", exactly the reference" if exact else ""), sample.get("generated"), "right" * exact))
    if not exact:
        lines.append(("reference", sample.get("reference"), ""))
    text = "".join(
        f'<p class="{style}"><span class=who>{html.escape(who)}</span>{html.escape(str(what or "").strip())}</p>'
        for who, what, style in lines
    )
    return f'<div class="sample">{pictures}<div>{text}</div></div>'


def _events(run: RunFolder) -> str:
    rows = [row for row in run.all_rows if row.get("kind") in _EVENTS]
    cells = [
        [
            row.get("step"),
            row["kind"],
            "; ".join(f"{k} {v}" for k, v in row.items() if k not in ("kind", "step", "time")),
        ]
        for row in rows
    ]
    return html.table(["step", "event", ""], cells)


def _facts(values: Any) -> str:
    known = [(name, value) for name, value in leaves(values or {}) if value is not None and name]
    return html.table(["", ""], known, code=[1])


def _model(record: dict[str, Any]) -> str:
    model = record.get("model") or {}
    if not {"num_parameters", "num_trainable"} <= set(model):
        return ""
    total, trained = model["num_parameters"], model["num_trainable"]
    rows = [["parameters", f"{total:,}"], ["trained", f"{trained:,} ({100 * trained / max(total, 1):.3g} %)"]]
    rows += [["edit", edit] for edit in model.get("edits", [])]
    mfu = record.get("mfu") or {}
    if mfu.get("peak_tflops"):
        rows.append(["MFU", f"{mfu['formula']}; peak {mfu['peak_tflops']} TFLOP/s: {mfu['peak_source']}"])
    return html.table(["", ""], rows)


def _configuration(record: dict[str, Any]) -> str:
    origins = record.get("provenance") or {}
    rows = []
    for path, value in leaves(record["config"]):
        origin = origins.get(path) or {}
        where = str(origin.get("source", ""))
        # An override names its key and value once more.
        rows.append([path, value, origin.get("origin", ""), "" if where.startswith("override ") else where])
    return html.table(["key", "value", "origin", "where"], rows, code=[0, 1, 3])


def _checkpoints(run: RunFolder) -> str:
    rows = [
        [
            c["name"],
            c.get("problem") or f"{c['bytes'] / 2**20:,.1f} MiB",
            ", ".join(f"{k} {v:.4g}" for k, v in (c.get("metrics") or {}).items() if "/" in k),
        ]
        for c in run.checkpoints()
    ]
    final = run.path / "final"
    if final.is_dir():
        size = sum(file.stat().st_size for file in final.rglob("*") if file.is_file())
        rows.append(["final", f"{size / 2**20:,.1f} MiB", "the finished weights"])
    return html.table(["checkpoint", "size", "metrics"], rows)


def _environment(record: dict[str, Any]) -> str:
    rows = [(key, record.get(key)) for key in ("python", "platform", "device", "device_name", "world_size")]
    rows += sorted(record["versions"].items())
    command = f"<pre>{html.escape(shlex.join(map(str, record.get('command', []))))}</pre>"
    return command + html.table(["", ""], [row for row in rows if row[1] not in (None, "")])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
