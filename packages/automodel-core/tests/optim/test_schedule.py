import math

import pytest
import torch

from automodel_core.optim import OptimizerParamScheduler


def optimizer(**group):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], **group}], lr=1.0, weight_decay=0.1)


def lrs(n=12, **keys):
    opt = optimizer()
    schedule = OptimizerParamScheduler(opt, max_lr=1.0, lr_decay_steps=10, **keys)
    seen = []
    for _ in range(n):
        assert opt.param_groups[0]["lr"] == schedule.last_lr
        seen.append(schedule.last_lr)
        schedule.step()
    return seen


def test_cosine_with_warmup_in_closed_form():
    want = [0.2, 0.6] + [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)] + [0.1, 0.1]
    assert lrs(init_lr=0.2, min_lr=0.1, lr_warmup_steps=2) == pytest.approx(want)


def test_linear_in_closed_form():
    assert lrs(min_lr=0.5, lr_decay_style="linear") == pytest.approx([1 - 0.05 * i for i in range(10)] + [0.5, 0.5])


def test_constant_stays_after_warmup():
    assert lrs(lr_decay_style="constant", lr_warmup_steps=4) == pytest.approx([0, 0.25, 0.5, 0.75] + [1.0] * 8)


def test_inverse_square_root_in_closed_form():
    want = [i / 4 for i in range(4)] + [max(0.65, math.sqrt(4 / i)) for i in range(4, 12)]
    assert lrs(lr_decay_style="inverse-square-root", lr_warmup_steps=4, min_lr=0.65) == pytest.approx(want)


@pytest.mark.parametrize(
    "style, curve",
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * x))),
        ("exponential", lambda x: 2 * 0.5**x - 1),
        ("minus_sqrt", lambda x: 1 - math.sqrt(x)),
    ],
)
def test_wsd_is_stable_and_then_decays(style, curve):
    want = [1.0] * 7 + [curve(i / 4) for i in range(1, 4)] + [0.0, 0.0]
    assert lrs(lr_decay_style="WSD", wsd_decay_steps=4, lr_wsd_decay_style=style) == pytest.approx(want)


def test_multipliers_of_a_group_are_kept():
    opt = optimizer(lr_mult=0.1, wd_mult=0.0)
    schedule = OptimizerParamScheduler(opt, max_lr=1.0, lr_decay_steps=10, start_wd=0.3)
    schedule.step(5)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05)
    assert opt.param_groups[0]["weight_decay"] == 0.0


def test_weight_decay_grows_or_is_left_alone():
    opt = optimizer()
    schedule = OptimizerParamScheduler(
        opt, max_lr=1.0, lr_decay_steps=10, start_wd=0.0, end_wd=1.0, wd_incr_steps=4, wd_incr_style="linear"
    )
    seen = []
    for _ in range(6):
        seen.append(opt.param_groups[0]["weight_decay"])
        schedule.step()
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.0])
    untouched = optimizer()
    OptimizerParamScheduler(untouched, max_lr=1.0, lr_decay_steps=10).step()
    assert untouched.param_groups[0]["weight_decay"] == 0.1


def test_resume_goes_on_with_the_checkpoints_schedule_unless_overridden(caplog):
    first = OptimizerParamScheduler(optimizer(), max_lr=1.0, lr_decay_steps=10)
    first.step(4)
    state = first.state_dict()
    kept = OptimizerParamScheduler(optimizer(), max_lr=1.0, lr_decay_steps=100)
    kept.load_state_dict(state)
    assert kept.last_lr == first.last_lr
    assert "lr_decay_steps: checkpoint 10, configured 100" in caplog.text
    own = OptimizerParamScheduler(optimizer(), max_lr=1.0, lr_decay_steps=100, override_opt_param_scheduler=True)
    own.load_state_dict(state)
    assert own.last_lr == pytest.approx(own.lr_at(4)) != first.last_lr
    neither = OptimizerParamScheduler(
        optimizer(), max_lr=1.0, lr_decay_steps=100, use_checkpoint_opt_param_scheduler=False
    )
    with pytest.raises(ValueError, match="schedule differs"):
        neither.load_state_dict(state)


def test_milestones_name_start_peak_and_end():
    schedule = OptimizerParamScheduler(optimizer(), max_lr=1.0, lr_decay_steps=10, lr_warmup_steps=2)
    assert schedule.milestones() == [(0, 0.0), (2, 1.0), (6, pytest.approx(0.5)), (10, 0.0)]


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"lr_decay_style": "cosin"}, "lr_decay_style='cosin'"),
        ({"min_lr": 2.0}, "min_lr=2.0"),
        ({"lr_warmup_steps": 11}, "lr_warmup_steps=11"),
        ({"lr_decay_style": "WSD"}, "wsd_decay_steps=None"),
    ],
)
def test_impossible_schedules_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        OptimizerParamScheduler(optimizer(), max_lr=1.0, lr_decay_steps=10, **keys)


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    """Optimizers that compile their step read it from there."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.5))
    rate = optimizer.param_groups[0]["lr"]
    schedule = OptimizerParamScheduler(
        optimizer, max_lr=0.5, min_lr=0.0, init_lr=0.0, lr_warmup_steps=2, lr_decay_steps=4, lr_decay_style="linear"
    )
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25
