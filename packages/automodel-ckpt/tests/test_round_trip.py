"""Saving and loading in one process: bits, names, refusals."""

import os
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from automodel_ckpt import (
    AlreadyExists,
    CheckpointNotFound,
    Keep,
    StateMismatch,
    UnsupportedState,
    best,
    latest,
    load,
    save,
    verify,
)


def test_everything_comes_back_bit_for_bit(tmp_path, build, state_of, equal):
    path = save(tmp_path, state_of(build(1)), step=12)
    assert path == tmp_path / "step-00000012"
    back = build(2)
    report = load(path, state_of(back))
    assert equal(back, build(1))
    assert (report.step, report.missing, report.unexpected, report.resharded) == (12, (), (), 0)


def test_next_step_of_the_optimizer_is_the_same(tmp_path, build, state_of, equal):
    one, other = build(1), build(2)
    save(tmp_path, state_of(one), step=1)
    load(tmp_path, state_of(other))
    for made in (one, other):
        for index, parameter in enumerate(made.model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * index)
        made.optim.step()
    assert equal(one, other)


def test_plain_state_keeps_types_and_bits(tmp_path):
    nested = {
        "floats": [0.1, 1e-320, -0.0, float("inf"), 2**53 + 1.0],
        "ints": [2**80, -1, True],
        "keys": {3: "int", "$x": 1, None: 2, (1, 2): 3},
        "python": random.getstate(),
        "numpy": np.random.default_rng(3).bit_generator.state,
        "legacy": np.random.RandomState(1).get_state(),
        "scalar": np.float32(1.5),
        "torch": torch.arange(6).reshape(2, 3).t(),
        "empty": [{}, [], (), b"", torch.empty(0, 3), torch.tensor(5, dtype=torch.int8)],
    }
    save(tmp_path, {"train": nested}, step=1)
    back: dict = {}
    load(tmp_path, {"train": back})
    assert back["torch"].tolist() == nested["torch"].tolist()
    assert np.array_equal(back["legacy"][1], nested["legacy"][1])
    assert (back["empty"][4].shape, back["empty"][5].dtype) == ((0, 3), torch.int8)
    for state in (back, nested):
        del state["torch"], state["legacy"], state["empty"]
    assert repr(back) == repr(nested)


def test_nan_keeps_its_bits(tmp_path):
    import struct

    odd = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
    save(tmp_path, {"train": {"x": odd}}, step=1)
    back: dict = {}
    load(tmp_path, {"train": back})
    assert struct.pack("<d", back["x"]).hex() == "010000000000f87f"


class _Counter:
    def __init__(self, n):
        self.n = n

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_objects_with_state_dict_restore_themselves_inside_dicts(tmp_path):
    save(tmp_path, {"train": {"a": {"counter": _Counter(3)}, "x": 1}}, step=1)
    holder = {"a": {"counter": _Counter(0)}, "x": 0, "stale": 9}
    counter = holder["a"]["counter"]
    load(tmp_path, {"train": holder})
    assert (counter.n, holder["x"], "stale" in holder) == (3, 1, False)


def test_value_that_needs_pickle_is_named(tmp_path):
    with pytest.raises(UnsupportedState, match=r"train\.a\.1 is a .*object"):
        save(tmp_path, {"train": {"a": [1, object()]}}, step=1)
    assert latest(tmp_path) is None


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_dtypes_and_layouts(tmp_path, dtype):
    class Holder(nn.Module):
        def __init__(self, seed):
            super().__init__()
            raw = torch.randint(0, 2, (4, 6), generator=torch.Generator().manual_seed(seed)).to(dtype)
            self.register_buffer("flat", raw)
            self.register_buffer("turned", raw.clone().t())
            self.register_buffer("strided", raw.clone()[:, ::2])
            self.register_buffer("scalar", raw[0, 0].clone())
            self.register_buffer("empty", raw[:0].clone())

    one, other = Holder(1), Holder(2)
    save(tmp_path, {"model": one}, step=1)
    load(tmp_path, {"model": other})
    for name, buffer in one.named_buffers():
        mine = dict(other.named_buffers())[name]
        assert mine.dtype == dtype
        assert torch.equal(mine.to(torch.complex64), buffer.to(torch.complex64)), name


def test_files_are_valid_safetensors_with_the_right_mode(tmp_path, build, state_of):
    path = save(tmp_path, state_of(build(1)), step=1)
    file = path / "model/shard-00000-of-00001.safetensors"
    assert torch.equal(load_file(file)["mid.weight"], build(1).model["mid"].weight)
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_tied_weight_is_stored_once_and_stays_tied(tmp_path, build):
    path = save(tmp_path, {"model": build(1).model}, step=1)
    assert "head.weight" not in load_file(path / "model/shard-00000-of-00001.safetensors")
    untied = build(2).model
    untied["head"].weight = nn.Parameter(torch.zeros(11, 8))
    load(path, {"model": untied})
    assert torch.equal(untied["head"].weight, build(1).model["embed"].weight)
    untied_path = save(tmp_path / "untied", {"model": untied}, step=1)
    with pytest.raises(StateMismatch, match=r"tied to embed\.weight here"):
        load(untied_path, {"model": build(2).model})


def test_other_model_is_refused_before_anything_changes(tmp_path, build, state_of, equal):
    save(tmp_path, state_of(build(1, width=9)), step=1)
    back = build(2)
    with pytest.raises(StateMismatch) as caught:
        load(tmp_path, state_of(back))
    assert "embed.weight: shape [11, 9] in the checkpoint, [11, 8] here" in caught.value.differences
    assert caught.value.exit_code == 6
    assert equal(back, build(2))


def test_missing_and_unexpected_names(tmp_path, build):
    save(tmp_path, {"model": build(1).model}, step=1)
    model = build(2).model
    model["new"] = nn.Linear(2, 2)
    del model["mid"]
    with pytest.raises(StateMismatch, match=r"new\.bias: absent.*mid\.weight: in the checkpoint, not here"):
        load(tmp_path, {"model": model})
    report = load(tmp_path, {"model": model}, strict=False)
    assert report.missing == ("new.weight", "new.bias")
    assert report.unexpected == ("mid.bias", "mid.weight")


def test_other_dtype_needs_cast(tmp_path, build):
    save(tmp_path, {"model": build(1).model}, step=1)
    half = build(2).model.to(torch.bfloat16)
    with pytest.raises(StateMismatch, match="F32 in the checkpoint, BF16 here"):
        load(tmp_path, {"model": half})
    load(tmp_path, {"model": half}, cast=True)
    assert torch.equal(half["mid"].weight, build(1).model["mid"].weight.to(torch.bfloat16))


def _lora(frozen_width=4):
    model = nn.Sequential(nn.Linear(frozen_width, 4).requires_grad_(False), nn.Linear(4, 4))
    return model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def test_trainable_only_leaves_the_base_out_and_checks_it(tmp_path):
    model, optimizer = _lora()
    path = save(tmp_path, {"model": model, "optim": optimizer}, step=1, trainable_only=True)
    assert sorted(load_file(path / "model/shard-00000-of-00001.safetensors")) == ["1.bias", "1.weight"]
    other, other_optimizer = _lora()
    base = other[0].weight.clone()
    load(path, {"model": other, "optim": other_optimizer})
    assert torch.equal(other[1].weight, model[1].weight)
    assert torch.equal(other[0].weight, base)
    wrong, _ = _lora(frozen_width=5)
    with pytest.raises(StateMismatch, match=r"0\.weight: base shape \[4, 4\] then, \[4, 5\] here"):
        load(path, {"model": wrong})


def test_optimizer_state_follows_names_not_positions(tmp_path, build, equal, state_of):
    save(tmp_path, state_of(build(1)), step=1)
    back = build(2)
    back.optim = torch.optim.AdamW([{"params": list(back.model.parameters())[::-1]}], lr=9.0)
    load(tmp_path, state_of(back))
    assert equal(back, build(1))
    fewer = build(3)
    fewer.optim = torch.optim.AdamW([fewer.model["mid"].weight], lr=1.0)
    with pytest.raises(StateMismatch, match=r"the checkpoint trains embed\.weight, the optimizer does not"):
        load(tmp_path, state_of(fewer))


def test_a_step_is_saved_once(tmp_path, build, state_of):
    save(tmp_path, state_of(build(1)), step=1)
    with pytest.raises(AlreadyExists, match="complete checkpoint already"):
        save(tmp_path, state_of(build(2)), step=1)
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002/notes.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="left alone"):
        save(tmp_path, state_of(build(2)), step=2)
    assert (tmp_path / "step-00000002/notes.txt").read_text() == "mine"


def test_latest_best_and_retention(tmp_path, build, state_of):
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, float("nan")], start=1):
        save(
            tmp_path, state_of(build(step)), step=step, metrics={"loss": loss}, keep=Keep(last=2, best=("loss", "min"))
        )
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000004", "step-00000005"]
    assert latest(tmp_path).name == "step-00000005"
    assert best(tmp_path, "loss").name == "step-00000002"
    assert best(tmp_path, "loss", mode="max").name == "step-00000004"
    assert best(tmp_path, "accuracy") is None
    assert (tmp_path / "LATEST").read_text() == "step-00000005\n"
    assert (tmp_path / "BEST").read_text() == "step-00000002\n"


def test_retention_keeps_every_nth_and_pinned(tmp_path):
    for step in range(1, 8):
        save(tmp_path, {"train": {"x": step}}, step=step, keep=Keep(last=1, every=3, pinned=(2,)))
    assert sorted(int(p.name[-1]) for p in tmp_path.glob("step-*")) == [2, 3, 6, 7]


@pytest.mark.parametrize("name", ["step-1", "step-00000001-backup", "x-step-00000009", "step-000000000000000000009"])
def test_foreign_names_are_neither_loaded_nor_deleted(tmp_path, name):
    (tmp_path / name).mkdir()
    for step in (1, 2, 3):
        save(tmp_path, {"train": {"x": step}}, step=step, keep=Keep(last=1))
    assert latest(tmp_path).name == "step-00000003"
    assert (tmp_path / name).is_dir()


def test_url_of_an_unknown_store_is_refused_rather_than_made_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="fsspec cannot open nowhere://"):
        save("nowhere://bucket/run", {"train": {"x": 1}}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_there(tmp_path, build, state_of):
    assert latest(tmp_path / "absent") is None
    with pytest.raises(CheckpointNotFound, match="no complete checkpoint"):
        load(tmp_path / "absent", state_of(build(1)))
    with pytest.raises(CheckpointNotFound, match="does not exist"):
        verify(tmp_path / "step-00000001")


def test_latest_is_found_among_thousands_of_directories(tmp_path):
    save(tmp_path, {"train": {"x": 1}}, step=5)
    for index in range(3000):
        (tmp_path / f"junk-{index}").mkdir()
    assert latest(tmp_path).name == "step-00000005"


def test_extra_state_of_modules(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"scale": torch.tensor([1.5]), "name": self.label}

        def set_extra_state(self, state):
            self.label = state["name"]
            self.scale = state["scale"]

    def make(label):
        model = nn.Sequential(Extra(2, 2))
        model[0].label = label
        return model

    save(tmp_path, {"model": make("one")}, step=1)
    other = make("two")
    load(tmp_path, {"model": other})
    assert (other[0].label, other[0].scale.item()) == ("one", 1.5)


def test_large_tensors_cross_blocks(tmp_path):
    model = nn.Sequential(nn.Linear(2100, 2100), nn.Linear(2100, 2100))  # 17.6 MB each: blocks of 16 MiB are shared
    path = save(tmp_path, {"model": model}, step=1, threads=3)
    other = nn.Sequential(nn.Linear(2100, 2100), nn.Linear(2100, 2100))
    other[1].weight = nn.Parameter(other[1].weight.detach().t())  # not flat in memory: goes through the buffer
    load(path, {"model": other}, threads=3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
