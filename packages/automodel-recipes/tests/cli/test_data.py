"""`data show`, `data check` and `data cache` on text and vision-language configurations."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from automodel_recipes.cli import main

TEXT = {
    "model": {
        "_target_": "automodel_core.NeMoAutoModelForCausalLM.from_pretrained",
        "pretrained_model_name_or_path": "pkg://automodel_recipes/assets/tiny_llama",
    },
}
VISION = {
    "recipe": "VLMFinetuneRecipe",
    "model": {
        "_target_": "automodel_core.NeMoAutoModelForImageTextToText.from_config",
        "config": "pkg://automodel_recipes/assets/tiny_llava",
    },
}


def chat(answer: str, question: Any = "How many?") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def picture(shade: int, side: int = 20) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def seen(answer: str, url: str) -> dict[str, Any]:
    return chat(answer, [{"type": "image", "image": url}, {"type": "text", "text": "What?"}])


@pytest.fixture
def data(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``data(base, rows, *arguments, **dataset)`` writes rows and a configuration, runs, gives (code, out, err)."""
    monkeypatch.setenv("AUTOMODEL_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(base: dict, rows: list, verb: str, *arguments: str, target: str = "", **dataset: Any) -> Any:
        source = tmp_path / "rows.jsonl"
        source.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        name = target or ("llava_style" if "recipe" in base else "chat")
        where = "path_or_dataset" if name == "llava_style" else "path_or_dataset_id"
        config = {**base, "dataset": {"_target_": name, where: str(source), **dataset}}
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(config))
        capsys.readouterr()
        code = main(["data", verb, str(path), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_show_marks_what_is_trained(data: Any) -> None:
    code, out, _ = data(TEXT, [chat("two"), chat("three")], "show", "--start", "1")
    assert code == 0
    assert out.startswith("row 1: ")
    assert "\u00abthree<|end|>\u00bb" in out
    assert "\x1b[32mtwo<|end|>\x1b[0m" in data(TEXT, [chat("two")], "show", "--color")[1]


def test_show_tells_of_pictures_what_the_model_gets(data: Any) -> None:
    code, out, _ = data(VISION, [seen("red", picture(200, side=100))], "show", media={"pixel_budget": 2500})
    assert code == 0
    assert "image 50x50, 36 tokens" in out
    assert "<image> x36 What?" in out
    assert "\u00abred<|end|>\u00bb" in out


@pytest.mark.parametrize("base", [TEXT, VISION])
def test_check_sees_every_bad_row_and_strict_exits_with_4(base: dict, data: Any, tmp_path: Path) -> None:
    rows = [chat(str(i)) for i in range(6)]
    rows += [{"messages": "no"}, {"messages": []}, chat(3)]  # type: ignore[arg-type]
    report = tmp_path / "bad.jsonl"
    code, out, _ = data(base, rows, "check", "--bad-rows", str(report), on_bad="fail")
    assert code == 0
    assert "6 (3 bad" in out
    assert "problem     3 rows cannot be used" in out
    assert [json.loads(line)["line"] for line in report.read_text().splitlines()] == [7, 8, 9]
    code, out, _ = data(base, rows, "check", "--strict", "--json")
    assert code == 4
    assert json.loads(out)["num_bad"] == 3


def test_check_of_clean_data_is_quiet(data: Any) -> None:
    code, out, _ = data(TEXT, [chat(str(i)) for i in range(6)], "check", "--strict", "--max-rows", "4")
    assert (code, out.splitlines()[-1]) == (0, "no problem found")
    assert out.startswith("rows        4 (")


@pytest.mark.parametrize("base", [TEXT, VISION])
def test_check_counts_what_truncation_costs(base: dict, data: Any) -> None:
    long = chat("one two three four five six seven eight nine ten eleven twelve")
    code, out, _ = data(base, [chat("1"), long], "check", "--json", seq_length=24, overflow="truncate_right")
    figures = json.loads(out)
    assert (code, figures["num_truncated"]) == (0, 1)
    assert figures["num_tokens_cut"] > 0
    assert any("are truncated" in text for text in figures["problems"])


def test_packing_is_forecast_at_the_configured_size(data: Any) -> None:
    sized = {**TEXT, "packed_sequence": {"packed_sequence_size": 96}}
    assert "full at 96 tokens" in data(sized, [chat("1")] * 9, "check")[1]
    assert "full at 64 tokens" in data(sized, [chat("1")] * 9, "check", "--pack-size", "64")[1]


def test_equal_words_about_other_pictures_are_no_duplicates(data: Any) -> None:
    other = data(VISION, [seen("red", picture(shade)) for shade in (100, 200)], "check", "--json")[1]
    same = data(VISION, [seen("red", picture(100))] * 2, "check", "--json")[1]
    assert (json.loads(other)["num_duplicates"], json.loads(same)["num_duplicates"]) == (0, 1)


def test_blocks_of_text_need_no_stop_token(data: Any) -> None:
    rows = [{"text": "some words " * 20}] * 4
    code, _, _ = data(TEXT, rows, "check", "--strict", "--max-rows", "1", target="text_pretrain", seq_length=32)
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--section", "validation_dataset"], "no data section 'validation_dataset'. It has: dataset"),
        (["--start", "7"], "--start 7: dataset has 1 rows"),
        (["dataset.mask=nothing"], "mask='nothing' is not known"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, data: Any) -> None:
    code, _, err = data(TEXT, [chat("1")], "show", *arguments)
    assert code in (2, 4)
    assert message in err


def test_streams_show_their_first_rows_and_rows_of_classes_are_refused(data: Any, tmp_path: Path) -> None:
    code, _, err = data(
        {**TEXT, "recipe": "SequenceClassificationRecipe"},
        [{"text": "good", "label": 1}],
        "show",
        target="classification",
    )
    assert code == 2
    assert "do not have one label per token" in err
    code, out, _ = data(TEXT, [chat("1")], "show", target="chat_stream")
    assert code == 0
    assert "row 0: " in out


def test_the_cache_is_listed_and_deleted(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data(TEXT, [chat("1")], "show")
    assert main(["data", "cache", "ls", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert main(["data", "cache", "rm", entry["key"][:12]]) == 0
    assert capsys.readouterr().out == "removed  1\n"
    assert main(["data", "cache", "ls"]) == 0
    assert capsys.readouterr().out.startswith("nothing in ")
    assert main(["data", "cache", "rm", "none"]) == 4


def test_help_is_light() -> None:
    code = (
        "import sys; from automodel_recipes.cli import main; code = main(['data', 'check', '--help']);"
        "heavy = [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules];"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
