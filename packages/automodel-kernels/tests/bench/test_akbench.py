"""akbench: a wrong result gets no time, a missing implementation a reason, and a slower file a failing status."""

import json

import pytest
import torch

from automodel_kernels.bench import cli, implementations, measure, rows, shapes
from automodel_kernels.bench.cases import CASES

TINY = "small:T=24,H=16,V=64,I=32,heads=2,kv=1,D=8,rank=4,valid=0.5"


def run(tmp_path, *arguments, name="rows.jsonl"):
    path = tmp_path / name
    status = cli.main(["run", "--device", "cpu", "--shape", TINY, "--repeats", "2", "--json", str(path), *arguments])
    return status, rows.read_rows(str(path))


@pytest.fixture(autouse=True)
def ceilings(monkeypatch):
    from automodel_kernels.bench.roofline import Ceilings

    fixed = Ceilings("test", 1e9, {"float32": 1e9})
    monkeypatch.setattr(cli, "measure_ceilings", lambda device, dtypes: fixed)


def test_every_op_gives_a_right_timed_row(tmp_path, capsys):
    status, found = run(tmp_path, "--impl", "ours,torch", "--mode", "fwd,full")
    assert status == 0
    assert len(found) == 2 * 2 * len(CASES)
    for row in found:
        assert row["status"] == "ok", row
        assert row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["pct_of_floor"] == pytest.approx(100 * row["floor_ms"] / row["ms_p50"])
        assert {"torch", "triton", "git", "device", "rel_err", "peak_mb", "spread", "tokens_per_s"} <= row.keys()
    assert "pct_of_floor" in capsys.readouterr().out


def test_a_wrong_result_gets_no_time(tmp_path, monkeypatch):
    monkeypatch.setitem(implementations._OURS, "swiglu", lambda i: implementations._TORCH["swiglu"](i) * 1.001)
    status, found = run(tmp_path, "--impl", "ours,torch", "--op", "swiglu")
    assert status == 1
    assert [row["status"] for row in found] == ["wrong", "ok"]
    assert "ms_p50" not in found[0]
    assert found[0]["max_rel_err"] > 1e-4


def test_absent_implementations_say_why(tmp_path):
    _, found = run(tmp_path, "--impl", "liger,cce,trl", "--op", "swiglu")
    assert {row["status"] for row in found} == {"unsupported"}
    assert all(row["reason"] for row in found)


def test_compare_fails_on_a_slower_row_but_not_on_noise():
    base = {"op": "ce", "impl": "ours", "mode": "full", "shape": "s", "dtype": "float32", "status": "ok"}
    old = [{**base, "ms_p50": 10.0, "spread": 0.01}]
    assert rows.compare(old, [{**base, "ms_p50": 10.2, "spread": 0.01}], 0.97)[1] is False
    assert rows.compare(old, [{**base, "ms_p50": 12.0, "spread": 0.01}], 0.97)[1] is True
    assert rows.compare(old, [{**base, "ms_p50": 12.0, "spread": 0.5}], 0.97)[1] is False
    assert rows.compare(old, [{**base, "status": "wrong"}], 0.97)[1] is True
    assert rows.compare(old, [], 0.97)[0] == ["gone   ce ours full s float32"]


def test_compare_command(tmp_path, capsys):
    run(tmp_path, "--impl", "ours", "--op", "swiglu", name="a.jsonl")
    measured = [{**row, "spread": 0.0} for row in rows.read_rows(str(tmp_path / "a.jsonl"))]  # whatever else ran then
    for name, factor in (("a.jsonl", 1), ("b.jsonl", 50)):
        scaled = [{**row, "ms_p50": row["ms_p50"] * factor} for row in measured]
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in scaled))
    assert cli.main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 1
    assert "SLOWER swiglu ours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "conv"], "--op conv: it must be among linear_ce"),
        (["--impl", "quack"], "--impl quack: it must be among ours"),
        (["--shape", "huge"], "shape 'huge': it must be one of llama1b, llama8b, small"),
        (["--shape", "small:K=3"], "shape key 'K': it must be one of T, H, V"),
        (["--shape", "small:T=many"], "shape value 'T=many': it must be a number"),
    ],
)
def test_mistakes_exit_with_2_and_a_reason(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["run", "--device", "cpu", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_memory_counts_what_a_run_allocates():
    run_one = lambda inputs: torch.empty(64 * 2**18).fill_(1.0)[:0].sum() + inputs["x"].sum()  # noqa: E731
    peak = measure.peak_bytes(run_one, {"x": torch.ones(4)}, ("x",), False)
    if peak is None:
        pytest.skip("this platform does not report the peak of resident memory")
    assert 60 * 2**20 < peak < 80 * 2**20


def test_shapes_change_presets():
    assert shapes.parse_shape("llama8b:T=7,valid=0.3") == shapes.Shape(
        T=7, H=4096, V=128256, I=14336, heads=32, kv=8, D=128, valid=0.3
    )
