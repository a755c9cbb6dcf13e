"""How a global batch is split over micro-batches and processes changes nothing."""

import pytest
from safetensors.torch import load_file

from comparing import weight_change_difference

OPTIMIZERS = {
    "sgd": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "eps": 1e-4},
}


def _same(run, reference, tiny_model):
    for key in ("loss", "grad_norm"):
        assert run.train(key) == pytest.approx(reference.train(key), rel=1e-5)
    assert run.train("num_label_tokens") == reference.train("num_label_tokens")
    before = load_file(tiny_model / "model.safetensors")
    assert weight_change_difference(before, reference.weights(), run.weights()) <= 1e-4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_8x1_equals_2x4_equals_1x8(cli, tiny_config, tiny_model, optimizer):
    tiny_config["optimizer"] = OPTIMIZERS[optimizer]
    reference = cli(tiny_config, "8x1")
    assert len(reference.train("loss")) == 6
    for local in (2, 1):
        tiny_config["step_scheduler"]["local_batch_size"] = local
        _same(cli(tiny_config, f"{local}x{8 // local}"), reference, tiny_model)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ddp_processes_equal_one_process(cli, tiny_config, tiny_model, optimizer):
    tiny_config["optimizer"] = OPTIMIZERS[optimizer]
    reference = cli(tiny_config, "one")
    tiny_config["step_scheduler"]["local_batch_size"] = 2
    tiny_config["distributed"] = {"strategy": "ddp"}
    _same(cli(tiny_config, "two", "--nproc-per-node", "2"), reference, tiny_model)


def test_the_comparison_sees_another_batch_size(cli, tiny_config, tiny_model):
    """Negative control: a global batch of 4 instead of 8 must not pass for the same run."""
    reference = cli(tiny_config, "8")
    tiny_config["step_scheduler"].update(global_batch_size=4, local_batch_size=4, max_steps=6)
    with pytest.raises(AssertionError):
        _same(cli(tiny_config, "4"), reference, tiny_model)
