import json

import pytest

from automodel_recipes.bench_compare import SlowerError, append_row, compare, require_speed
from automodel_recipes.cli.app import main
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.shipped import find_shipped

WORDS = ["--warmup", "1", "--steps", "2", "step_scheduler.global_batch_size=4", "step_scheduler.local_batch_size=2"]


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["bench", str(find_shipped("demo_lora").path), *WORDS, *words])
        return code, capsys.readouterr()

    return run


def test_a_row_holds_speed_flops_and_memory(bench, tmp_path):
    code, printed = bench("--synthetic", "dataset.seq_length=16", "--json", "monitoring.track_memory=true")
    row = json.loads(printed.out)
    assert code == 0
    assert row["status"] == "ok"
    # 2 steps x 4 rows x 16 ids, all supervised but the first of each row.
    assert row["num_tokens"] == 2 * 4 * 16
    assert row["label_tokens_per_s"] == pytest.approx(row["tokens_per_s"] * 15 / 16, rel=0.07)
    step = row["step_time_s"]
    assert 0 < step["min"] <= step["median"] <= step["max"]
    assert row["tokens_per_s"] == pytest.approx(row["num_tokens"] / (2 * step["median"]), rel=0.5)
    # LoRA: about 4 operations a token for each frozen weight and 6 for each trained one; attention is little at 16.
    per_token = row["flops_per_s_per_device"] / row["tokens_per_s"]
    assert 4 * 0.7e6 + 6 * 0.49e6 < per_token < 1.15 * (4 * 0.77e6 + 6 * 0.49e6)
    assert row["memory"]["measured_bytes"] == pytest.approx(row["memory"]["estimate_bytes"], rel=0.06)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_slower_row_fails_and_says_by_how_much(bench, tmp_path):
    file = tmp_path / "rows.jsonl"
    code, printed = bench("--output", str(file))
    assert code == 0
    assert "supervised" in printed.out
    (row,) = map(json.loads, file.read_text().splitlines())
    file.write_text(json.dumps({**row, "tokens_per_s": row["tokens_per_s"] * 1e6}) + "\n")
    code, printed = bench("--compare", str(file))
    assert code == 1
    assert "below --fail-ratio 0.97" in printed.err
    code, printed = bench("--compare", str(file), "--fail-ratio", "0")
    assert code == 0
    assert "compared speed x 0.000" in printed.out


def test_a_benchmark_that_fails_leaves_a_row_with_the_reason(bench, tmp_path):
    file = tmp_path / "rows.jsonl"
    code, _ = bench("--output", str(file), "step_scheduler.global_batch_size=3")
    assert code == 2
    assert not file.exists()  # the configuration itself is wrong: nothing was measured
    code, _ = bench("--output", str(file), "peft.target_modules=['*.nowhere']")
    assert code != 0
    (row,) = map(json.loads, file.read_text().splitlines())
    assert (row["name"], row["status"]) == ("demo_lora", "failed")
    assert "nowhere" in row["reason"]


def row_of(speed, **keys):
    memory = {"measured_bytes": 100}
    row = {"status": "ok", "name": "a", "device_name": "d", "world_size": 1, "threads": 1, "synthetic": False}
    return {**row, "date": "then", "tokens_per_s": speed, "memory": memory, **keys}


def test_only_rows_alike_are_compared(tmp_path):
    file = tmp_path / "rows.jsonl"
    for row in (row_of(50.0), row_of(10.0), row_of(999.0, device_name="other"), {"name": "a", "status": "oom"}):
        append_row(file, row)
    found = compare(row_of(9.0, memory={"measured_bytes": 150}), file)
    assert (found.speed, found.memory) == (pytest.approx(0.9), pytest.approx(1.5))
    require_speed(found, 0.9)
    with pytest.raises(SlowerError, match=r"below --fail-ratio 0\.91"):
        require_speed(found, 0.91)
    with pytest.raises(UnusableInputError, match="no row with name='b'"):
        compare(row_of(9.0, name="b"), file)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UnusableInputError, match="No such file"):
        compare(row_of(1.0), tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UnusableInputError, match="not the JSON lines"):
        compare(row_of(1.0), tmp_path / "text")
