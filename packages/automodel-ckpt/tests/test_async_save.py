"""Saving in the background."""

import errno
import threading

import pytest
import torch
from torch import nn

from automodel_ckpt import AsyncSaver, SaveFailed, latest, load
from automodel_ckpt.directory import LocalDirectory
from automodel_ckpt.faults import ranks
from automodel_ckpt.faults.system import CountingSystem, fail_from


def _blocked(root):
    """A directory whose first write waits for the returned event."""
    gate = threading.Event()
    system = CountingSystem(lambda i, name, a: gate.wait(20) and None if name == "pwrite" else None)
    return LocalDirectory(root, system=system), gate


def test_state_is_that_of_the_call_though_training_goes_on(tmp_path, build, state_of, equal):
    directory, gate = _blocked(tmp_path)
    made = build(1)
    with AsyncSaver(directory) as saver:
        saver.save(state_of(made), step=1)
        with torch.no_grad():
            for parameter in made.model.parameters():
                parameter.zero_()
            for values in made.optim.state.values():
                values["exp_avg"].fill_(9)
        made.train["step"] = 99
        made.train["rng"].zero_()
        assert saver.poll() is None
        gate.set()
    back = build(2)
    load(tmp_path, state_of(back))
    assert equal(back, build(1))


def test_error_in_the_background_is_raised_and_the_next_save_works(tmp_path, build, state_of):
    directory = LocalDirectory(tmp_path, system=fail_from(6, errno.ENOSPC))
    saver = AsyncSaver(directory)
    saver.save(state_of(build(1)), step=1)
    with pytest.raises(SaveFailed, match="ENOSPC"):
        saver.wait()
    directory.os = CountingSystem()
    saver.save(state_of(build(1)), step=2)
    assert saver.close() == tmp_path / "step-00000002"


def test_close_has_a_deadline(tmp_path, build, state_of):
    directory, gate = _blocked(tmp_path)
    saver = AsyncSaver(directory)
    saver.save(state_of(build(1)), step=1)
    with pytest.raises(SaveFailed, match=r"not done after 0\.1 s"):
        saver.wait(0.1)
    assert latest(tmp_path) is None
    gate.set()
    assert saver.close() == latest(tmp_path)


def test_buffers_are_reused(tmp_path, build, state_of):
    made = build(1)
    with AsyncSaver(tmp_path) as saver:
        saver.save(state_of(made), step=1)
        before = {key: buffer.data_ptr() for key, buffer in saver._buffers.items()}
        saver.save(state_of(made), step=2)
        assert {key: buffer.data_ptr() for key, buffer in saver._buffers.items()} == before


def test_sharded_state_in_the_background(fast_path):
    def work(rank):
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(0)
        model = fully_shard(nn.Linear(7, 5))
        expected = model.weight.full_tensor().clone()
        with AsyncSaver(fast_path) as saver:
            saver.save({"model": model}, step=1)
            with torch.no_grad():
                model.weight.to_local().zero_()
        load(fast_path, {"model": model})
        assert torch.equal(model.weight.full_tensor(), expected)

    ranks.run(2, work)
