"""A save that ends, or fails, at each of its system calls."""

import errno
import os
import random
import shutil
import subprocess

import pytest
from torch import nn

from automodel_ckpt import CheckpointError, Keep, SaveFailed, latest, lease, load, save, verify
from automodel_ckpt.directory import LocalDirectory
from automodel_ckpt.faults.power_loss import crash_states
from automodel_ckpt.faults.system import CountingSystem, Recorder, end_at, fail_at, fail_from, short_writes

_OTHER_CODES = (errno.EIO, errno.EROFS, errno.EDQUOT)


def _save(root, made, step, system=os, last=1):
    state = {"model": made.model, "optim": made.optim, "train": made.train}
    return save(LocalDirectory(root, system=system), state, step=step, keep=Keep(last=last), threads=1)


def _operations(fast_path, build):
    """How many operations the second save of a run takes (it deletes the first)."""
    _save(fast_path / "count", build(0), 1)
    system = CountingSystem()
    _save(fast_path / "count", build(1), 2, system)
    return system.count


def _ended_child(action) -> int:
    """Run ``action`` in a forked process; return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.more)], ids=["every-fourth", "every"])
def test_process_that_ends_at_any_system_call_leaves_a_complete_checkpoint(fast_path, build, state_of, equal, stride):
    total = _operations(fast_path, build)
    assert total > 25
    first = fast_path / "first"
    assert _ended_child(lambda: _save(first, build(0), 1)) == 0
    for index in range(random.randrange(stride), total, stride):
        root = fast_path / f"at-{index}"
        shutil.copytree(first, root)
        status = _ended_child(lambda root=root, index=index: _save(root, build(1), 2, end_at(index)))
        assert status == 137
        found = latest(root)
        assert found is not None, f"operation {index}"
        back = build(7)
        load(root, state_of(back))
        assert equal(back, build(int(found.name[-1]) - 1))
        # The next run needs no hand: it saves, and sweeps what was left.
        assert _ended_child(lambda root=root: _save(root, build(2), 3)) == 0
        assert latest(root).name == "step-00000003"
        assert [n for n in os.listdir(root) if n.startswith((".saving", ".trash"))] == []


@pytest.mark.parametrize("code", [errno.ENOSPC, *(pytest.param(c, marks=pytest.mark.more) for c in _OTHER_CODES)])
def test_failing_system_call_raises_with_path_and_keeps_the_old_checkpoint(fast_path, build, state_of, equal, code):
    total = _operations(fast_path, build)
    refused = 0
    for index in range(total):
        root = fast_path / f"at-{index}"
        _save(root, build(0), 1)
        try:
            _save(root, build(1), 2, fail_at(index, code))
        except SaveFailed as error:
            refused += errno.errorcode[code] in str(error)
        found = latest(root)
        back = build(7)
        load(root, state_of(back))
        assert equal(back, build(int(found.name[-1]) - 1))
        lease.release(root)
    assert refused > total // 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_stays_full_never_costs_the_old_checkpoint(fast_path, build, code):
    total = _operations(fast_path, build)
    root = fast_path / "full"
    _save(root, build(0), 1)
    for index in range(0, total, 2):
        with pytest.raises(SaveFailed, match=errno.errorcode[code]):
            _save(root, build(1), 2, fail_from(min(index, total // 2), code))
        assert verify(root / "step-00000001").ok
    _save(root, build(1), 2)
    assert verify(root).path.name == "step-00000002"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_is_really_full(small_disk):
    """Two checkpoints of 0.8 MiB fit, the third finds the disk full before it has written a byte of it."""

    def state(value):
        return {"model": nn.Linear(200_000, 1), "train": {"x": value}}

    for step in (1, 2):
        save(small_disk / "run", state(step), step=step)
    with pytest.raises(SaveFailed, match=r"ENOSPC \(No space left on device\) at .*\.saving-00000003-"):
        save(small_disk / "run", state(3), step=3)
    assert sorted(p.name for p in (small_disk / "run").glob("*")) == [
        ".lock", "LATEST", "step-00000001", "step-00000002",
    ]  # fmt: skip
    assert verify(small_disk / "run").ok
    save(small_disk / "run", {"train": {"x": 4}}, step=4, keep=Keep(last=1))  # training goes on, and makes room
    save(small_disk / "run", state(5), step=5)
    lease.release(small_disk / "run")


def test_error_names_the_file(fast_path, build):
    system = CountingSystem(lambda i, name, a: _raise(errno.ENOSPC) if name == "posix_fallocate" else None)
    with pytest.raises(SaveFailed, match=r"ENOSPC.*shard-00000-of-00001\.safetensors"):
        _save(fast_path / "run", build(0), 1, system)


def _raise(code):
    raise OSError(code, os.strerror(code))


def test_short_writes_are_completed(fast_path, build, state_of, equal):
    _save(fast_path / "run", build(3), 1, short_writes())
    back = build(7)
    load(fast_path / "run", state_of(back))
    assert equal(back, build(3))


def test_write_that_never_takes_a_byte_is_an_error_not_a_hang(fast_path, build):
    system = CountingSystem(lambda i, name, a: 0 if name == "pwrite" else None)
    with pytest.raises(SaveFailed, match="EIO"):
        _save(fast_path / "run", build(0), 1, system)


def _recorded_run(fast_path, build):
    recorder = Recorder(fast_path / "run")
    os.mkdir(fast_path / "run")
    for step in range(1, 5):
        made = build(step)
        state = {"model": made.model, "optim": made.optim, "train": made.train}
        save(recorder.directory(), state, step=step, keep=Keep(last=2), threads=1)
        recorder.acknowledge(step)
    return recorder.log


def _survives(state, acknowledged, build) -> bool:
    found = latest(state)
    if found is None:
        return acknowledged is None
    if acknowledged is not None and int(found.name[-8:]) < acknowledged:
        return False
    back = build(7)
    try:
        load(found, {"model": back.model, "optim": back.optim, "train": back.train})
    except CheckpointError:
        return False
    return back.train["step"] == int(found.name[-8:])


def _lost(log, fast_path, build, count, seed) -> int:
    lost = 0
    for state, acknowledged in crash_states(log, fast_path, count=count, seed=seed):
        lost += not _survives(state, acknowledged, build)
        shutil.rmtree(state)  # thousands of states would fill a small disk
    return lost


def test_no_power_failure_loses_an_acknowledged_checkpoint(fast_path, build):
    log = _recorded_run(fast_path, build)
    states = fast_path / "states"
    states.mkdir()
    assert _lost(log, states, build, 250, seed=random.randrange(1 << 30)) == 0


@pytest.mark.long
def test_no_power_failure_loses_an_acknowledged_checkpoint_5000(fast_path, build):
    log = _recorded_run(fast_path, build)
    states = fast_path / "states"
    states.mkdir()
    assert _lost(log, states, build, 5000, seed=1) == 0


@pytest.mark.parametrize("dropped", ["file", "directory"])
def test_power_failure_simulation_notices_a_missing_fsync(fast_path, build, dropped):
    """The judge itself is judged: without the fsyncs of files, or of directories, states are lost."""
    log = _recorded_run(fast_path, build)
    directories = {op.paths[0] for op in log if op.name == "mkdir"} | {""}
    names = {op.paths[1] for op in log if op.name == "rename"}
    is_directory = {op: op.paths[0] in directories | names for op in log if op.name == "fsync"}
    weaker = [op for op in log if op.name != "fsync" or is_directory[op] != (dropped == "directory")]
    assert len(weaker) < len(log)
    states = fast_path / "states"
    states.mkdir()
    assert _lost(weaker, states, build, 120, seed=1) > 0
