import pytest

from automodel_core.training import Timers
from automodel_core.training import timers as module


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_intervals_add_up_and_reset(clock):
    timers = Timers()
    for seconds in (2.0, 3.0):
        with timers("forward"):
            clock[0] += seconds
        clock[0] += 10.0
    assert timers.elapsed() == {"forward": 5.0}
    assert timers.elapsed() == {"forward": 0.0}


def test_min_and_max_and_all_ranks(clock):
    for option, want in (("minmax", {"a/min": 1.0, "a/max": 1.0}), ("all", {"a/0": 1.0})):
        timers = Timers(log_option=option)
        with timers("a"):
            clock[0] += 1.0
        assert timers.elapsed() == want


def test_a_block_that_raises_is_counted_and_closed(clock):
    timers = Timers()

    def fails():
        with timers("a"):
            clock[0] += 1.0
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with timers("a"):
        clock[0] += 1.0
    assert timers.elapsed() == {"a": 2.0}


def test_misuse_is_refused():
    timers = Timers()
    with pytest.raises(RuntimeError, match="not running"):
        timers.stop("a")
    timers.start("a")
    with pytest.raises(RuntimeError, match="is running"):
        timers.start("a")
    with pytest.raises(ValueError, match="log_option='mean'"):
        Timers(log_option="mean")
