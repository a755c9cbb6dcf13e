"""Saving, loading and exporting tell whoever watches how far they are."""

import torch

from automodel_ckpt import load, save
from automodel_ckpt.progress import watch_progress


def test_a_save_and_a_load_are_told_to_the_last_byte(tmp_path):
    model = torch.nn.Linear(64, 64)
    told = []
    with watch_progress(lambda *seen: told.append(seen)):
        path = save(tmp_path, {"model": model}, step=1)
        load(path, {"model": model})
    size = next(path.rglob("*.safetensors")).stat().st_size
    assert ("save", size, size) in told
    what, done, total = told[-1]
    assert what == "load"
    assert done == total >= 64 * 65 * 4
