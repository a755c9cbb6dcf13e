import pytest

from automodel_core.training import StepScheduler


class Loader:
    """Five micro-batches per epoch; remembers its place as a resumable loader does."""

    def __init__(self, n=5):
        self.n, self.epoch, self.position = n, 0, 0

    def __len__(self):
        return self.n

    def __iter__(self):
        while self.position < self.n:
            self.position += 1
            yield (self.epoch, self.position - 1)
        self.epoch, self.position = self.epoch + 1, 0


def scheduler(loader=None, **keys):
    keys = {"global_batch_size": 8, "local_batch_size": 2, "dp_size": 2, "num_epochs": 2} | keys
    return StepScheduler(dataloader=loader or Loader(), **keys)


def test_windows_end_with_the_epoch():
    assert list(scheduler()) == [
        [(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)], [(1, 0), (1, 1)], [(1, 2), (1, 3)], [(1, 4)],
    ]  # fmt: skip


def test_cadence_is_right_with_accumulation_and_at_epoch_ends():
    steps = scheduler(ckpt_every_steps=2, val_every_steps=4)
    rows = [(steps.step, steps.epoch, steps.is_ckpt_step, steps.is_val_step, steps.is_last_step) for _ in steps]
    assert rows == [
        (1, 0, False, False, False), (2, 0, True, False, False), (3, 0, True, False, False),
        (4, 1, True, True, False), (5, 1, False, False, False), (6, 1, True, False, True),
    ]  # fmt: skip


def test_the_last_step_of_a_run_that_saves_is_saved_and_no_other_run_is():
    assert [s.is_ckpt_step for s in [scheduler(max_steps=2)] for _ in s] == [False, True]
    silent = scheduler(save_checkpoint_every_epoch=False)
    assert not any(silent.is_ckpt_step for _ in silent)


@pytest.mark.parametrize("stop", range(1, 6))
def test_resume_goes_on_where_it_stopped(stop):
    straight = list(scheduler())
    loader, first = Loader(), None
    steps = scheduler(loader)
    for _ in steps:
        if steps.step == stop:
            first = (steps.state_dict(), loader.epoch, loader.position)
            break
    state, epoch, position = first
    resumed = Loader()
    resumed.epoch, resumed.position = epoch, position
    again = scheduler(resumed)
    again.load_state_dict(state)
    assert list(again) == straight[stop:]


def test_totals():
    assert (scheduler().steps_per_epoch, scheduler().total_steps, scheduler(max_steps=4).total_steps) == (3, 6, 4)
    assert scheduler(max_steps=100).total_steps == 6


def test_a_stream_ends_with_max_steps():
    steps = StepScheduler(global_batch_size=2, local_batch_size=1, dataloader=iter_forever(), max_steps=3)
    assert [len(window) for window in steps] == [2, 2, 2]
    assert steps.total_steps == 3


def iter_forever():
    class Stream:
        def __iter__(self):
            while True:
                yield 0

    return Stream()


def test_the_older_key_says_the_same():
    steps = scheduler(global_batch_size=None, grad_acc_steps=2)
    assert steps.global_batch_size == 8
    assert len(list(steps)) == 6


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"global_batch_size": 6}, "must be a multiple of 4. Use 4"),
        ({"global_batch_size": 2}, "must be a multiple of 4. Use 4"),
        ({"grad_acc_steps": 3}, "contradict each other"),
        ({"global_batch_size": None}, "neither global_batch_size nor grad_acc_steps"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"loader": iter_forever()}, "the run has no end"),
    ],
)
def test_sizes_that_make_no_run_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        scheduler(**keys)


def test_a_loader_without_data_is_an_error_and_no_endless_loop():
    class Empty(Loader):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="yielded nothing in two passes"):
        list(scheduler(Empty()))
