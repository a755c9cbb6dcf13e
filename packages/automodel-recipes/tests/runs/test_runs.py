"""`runs ls/show/diff/plot/report` on run directories as they are written, damaged, hostile, or of another version."""

import base64
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from automodel_recipes.cli import main
from automodel_recipes.run_json import without_secrets
from automodel_recipes.runs.curves import draw
from automodel_recipes.runs.folder import open_run

EVIL = "<script>alert('x')</script>"


def png(width: int = 4) -> bytes:
    """A small grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + b"\x80" * width for _ in range(width))
    head = struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a run's directory: ``write(name, lr=..., losses=..., **record)``."""

    def _write(name: str, *, lr: float = 0.1, losses: tuple[float, ...] = (3.0, 2.0, 1.0), **record: Any) -> Path:
        run = tmp_path / "runs" / name
        (run / "samples").mkdir(parents=True)
        whole = {
            "format": 1,
            "status": "finished",
            "recipe": "VLMFinetuneRecipe",
            "command": ["automodel-recipes", "train", "a b.yaml"],
            "config": {"optimizer": {"lr": lr}, "peft": {"target_modules": ["*.q_proj", EVIL]}},
            "provenance": {"optimizer.lr": {"value": lr, "origin": "override", "source": "command line"}},
            "versions": {"torch": "2.13.0"},
            "data": {"num_rows": 21, "num_tokens": 400},
            "model": {"num_parameters": 1000, "num_trainable": 10, "edits": ["lora: 2 modules"]},
            "end": {"exit_code": 0, "reason": "the schedule is complete"},
            "world_size": 1,
            **record,
        }
        (run / "run.json").write_text(json.dumps(whole))
        rows: list[dict] = [
            {"kind": "train", "step": i, "loss": loss, "lr": lr, "grad_norm": 1.0, "tokens_per_s": 10.0 + i, "time": i}
            for i, loss in enumerate(losses, start=1)
        ]
        rows.append({"kind": "val", "step": len(losses), "name": "val", "loss": losses[-1], "token_accuracy": 0.5})
        rows.append({"kind": "val", "step": len(losses), "name": "math", "loss": 9.0})
        rows.append({"kind": "warning", "step": 2, "message": f"slow {EVIL}"})
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
        (run / "samples" / "0.png").write_bytes(png())
        sample = {"kind": "sample", "step": 3, "prompt": EVIL, "reference": "yes", "generated": "no", "exact": False}
        (tmp_path / "private.png").write_bytes(png(5))
        samples = [
            {**sample, "step": 0, "generated": "BEFORE-1", "images": ["samples/0.png", "../../private.png"]},
            {**sample, "step": 0, "generated": "BEFORE-2", "images": ["samples/1.png"]},
            {**sample, "images": ["samples/0.png", "../../private.png"]},
        ]
        (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
        return run

    return _write


class Page(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]


def test_the_report_is_one_page_without_scripts_and_without_addresses(write: Any) -> None:
    run = write("a")
    assert main(["runs", "report", str(run)]) == 0
    text = (run / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert EVIL not in text
    assert "&lt;script&gt;" in text


def test_the_report_holds_what_the_run_wrote(write: Any) -> None:
    run = write("a")
    main(["runs", "report", str(run)])
    text = (run / "report.html").read_text()
    for part in ("optimizer.lr", "command line", "num_rows", "lora: 2 modules", "torch", "a b.yaml", "slow "):
        assert part in text, part
    assert base64.b64encode(png()).decode() in text
    assert base64.b64encode(png(5)).decode() not in text
    assert "private.png is not in this run" in text
    assert "the schedule is complete" in text
    assert "BEFORE-1" in text
    assert "BEFORE-2" not in text  # the same question about another picture


def test_a_run_that_has_just_begun_has_a_report_too(write: Any) -> None:
    run = write("a", status="running", end=None, data=None, model=None)
    (run / "metrics.jsonl").unlink()
    (run / "samples.jsonl").unlink()
    assert main(["runs", "report", str(run)]) == 0
    assert "running" in (run / "report.html").read_text()


def test_ls_lists_runs_and_says_which_cannot_be_read(write: Any, tmp_path: Path, capsys: Any) -> None:
    write("good")
    write("deep/er", status="failed")
    write("newer", format=7)
    write("torn").joinpath("run.json").write_text("{")
    assert main(["runs", "ls", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["good", "finished", "3"], ["deep/er", "failed", "3"]]
    assert "has format 7" in shown.err
    assert "Upgrade automodel-recipes" in shown.err
    assert "cannot be read" in shown.err
    assert main(["runs", "ls", str(tmp_path / "runs"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [run["best_val_loss"] for run in listed["runs"]] == [1.0, 1.0]
    assert len(listed["problems"]) == 2


@pytest.mark.parametrize("command", [["show"], ["report"], ["plot"], ["diff", "good"]])
def test_another_version_gives_words(write: Any, command: list[str], capsys: Any, tmp_path: Path) -> None:
    words = [str(write(word)) if word == "good" else word for word in command]
    assert main(["runs", *words, str(write("newer", format=2))]) == 2
    assert "has format 2 and this version of automodel-recipes reads format 1. Upgrade" in capsys.readouterr().err
    assert main(["runs", *words, str(tmp_path)]) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_show_gives_the_last_value_of_every_metric(write: Any, capsys: Any) -> None:
    run = write("a")
    assert main(["runs", "show", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["metrics"]["train/loss"] == 1.0
    assert shown["metrics"]["val_math/loss"] == 9.0
    assert shown["steps"] == 3


def test_a_step_that_was_run_again_counts_as_it_was_run_last(write: Any) -> None:
    run = write("a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"kind": "train", "step": 2, "loss": 7.0}) + "\n")
    assert open_run(run).series["train/loss"] == {1: 3.0, 2: 7.0, 3: 1.0}


def test_diff_names_what_differs(write: Any, capsys: Any) -> None:
    one, other = write("a"), write("b", lr=0.2, losses=(3.0, 2.5, 1.0), versions={"torch": "2.14.0"})
    assert main(["runs", "diff", str(one), str(other)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "config   optimizer.lr: 0.1 | 0.2",
        "environ  versions.torch: 2.13.0 | 2.14.0",
    ]
    assert main(["runs", "diff", str(one), str(other), "--exact"]) == 1
    assert "exact    train row at step 1: lr 0.1 against 0.2" in capsys.readouterr().out


def test_diff_exact_is_blind_to_the_clock_alone(write: Any, capsys: Any) -> None:
    one, other = write("a"), write("b")
    changed = (other / "metrics.jsonl").read_text().replace('"tokens_per_s": 11.0', '"tokens_per_s": 99.0')
    (other / "metrics.jsonl").write_text(changed)
    for run in (one, other):
        (run / "final").mkdir()
        (run / "final" / "model.safetensors").write_bytes(b"same")
    assert main(["runs", "diff", str(one), str(other), "--exact"]) == 0
    assert "is the same" in capsys.readouterr().out
    (other / "final" / "model.safetensors").write_bytes(b"sane")
    assert main(["runs", "diff", str(one), str(other), "--exact"]) == 1
    assert "final/model.safetensors: other bytes" in capsys.readouterr().out


def test_one_changed_loss_is_found(write: Any, capsys: Any) -> None:
    one, other = write("a"), write("b", losses=(3.0, 2.0 + 1e-12, 1.0))
    assert main(["runs", "diff", str(one), str(other), "--exact", "--json"]) == 1
    (line,) = json.loads(capsys.readouterr().out)["exact"]
    assert line.startswith("train row at step 2: loss 2.0 against 2.000000000001")


def test_plot_draws_runs_over_each_other(write: Any, tmp_path: Path, capsys: Any) -> None:
    runs = [str(write("a")), str(write("b", losses=(3.0, 1.0)))]
    out = tmp_path / "c.png"
    assert main(["runs", "plot", *runs, "-o", str(out), "--metric", "train/loss"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(["runs", "plot", *runs, "-o", str(out), "--metric", "val/los"]) == 2
    assert "no run has logged val/los. Logged metrics: train/grad_norm, train/loss" in capsys.readouterr().err


def test_the_curves_show_the_points() -> None:
    assert draw({"a": {"val/loss": {1: 2.0, 5: 1.0}}}) != draw({"a": {"val/loss": {1: 2.0, 5: 1.5}}})


def test_a_command_line_is_kept_without_its_secrets() -> None:
    words = ["train", "c.yaml", "wandb.api_key=abc", "--tokenizer.token", "abc", "optimizer.lr=1"]
    shown = without_secrets(words)
    assert shown == ["train", "c.yaml", "wandb.api_key=***", "--tokenizer.token", "***", "optimizer.lr=1"]
