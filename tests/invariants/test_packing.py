"""Packed rows give the loss and the gradient of the same rows padded, through the whole recipe."""

import pytest

from automodel_recipes.loggers.jsonl import read_jsonl
from resuming import run


def _first_step(config, out):
    config = {**config, "checkpoint": {"enabled": False, "checkpoint_dir": str(out)}}
    recipe = run(config)
    return next(row for row in read_jsonl(recipe.run_dir.metrics) if row["kind"] == "train")


def test_packed_equals_padded(tiny_config, tmp_path):
    """All 21 rows in one step: padded in one batch, or packed into rows of 128 tokens."""
    tiny_config["step_scheduler"] = {"global_batch_size": 21, "local_batch_size": 21, "num_epochs": 1}
    padded = _first_step(tiny_config, tmp_path / "padded")
    tiny_config["packed_sequence"] = {"packed_sequence_size": 128}
    tiny_config["step_scheduler"].update(global_batch_size=8, local_batch_size=2)
    packed = _first_step(tiny_config, tmp_path / "packed")
    assert packed["num_label_tokens"] == padded["num_label_tokens"]
    assert packed["num_tokens"] < 21 * 128
    for key in ("loss", "grad_norm"):
        assert packed[key] == pytest.approx(padded[key], rel=1e-5)
