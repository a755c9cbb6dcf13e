"""Damaged and hostile checkpoints: always found, never executed, never outside the directory."""

import json
import os
import pickle
import random
import shutil
import struct

import pytest

from automodel_ckpt import CheckpointError, Keep, UnsafeFile, latest, load, save, verify
from automodel_ckpt.adapter import load_adapter, read_tensors


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, build):
    root = tmp_path_factory.mktemp("pristine") / "run"
    made = build(1)
    state = {"model": made.model, "optim": made.optim, "train": made.train, "rank": {"seed": 5}}
    return save(root, state, step=1, keep=Keep(last=None))


def _mutate(directory, chance) -> str:
    """Change one checkpoint in one way; return what was done."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    kind = chance.choice(["truncate", "extend", "flip", "swap", "delete", "zero", "duplicate"])
    if kind == "truncate":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif kind == "extend":
        path.write_bytes(bytes(data) + chance.randbytes(chance.randint(1, 40)))
    elif kind == "flip":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    elif kind == "swap":
        other = chance.choice([p for p in files if p.read_bytes() != bytes(data)])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "delete":
        path.unlink()
    elif kind == "zero":
        start = chance.randrange(len(data))
        changed = data[:start] + bytes(len(data[start : start + 64])) + data[start + 64 :]
        if changed == data:
            changed[start] ^= 1
        path.write_bytes(changed)
    else:
        (path.parent / f"copy-of-{path.name}").write_bytes(data)
    return f"{kind} {path.name}"


def _undetected(pristine, place, count, seed) -> list[str]:
    chance = random.Random(seed)
    missed = []
    for index in range(count):
        directory = place / pristine.name
        shutil.copytree(pristine, directory)
        done = _mutate(directory, chance)
        try:
            verify(directory)
            missed.append(f"{index}: {done}")
        except CheckpointError:
            pass
        shutil.rmtree(directory)
    return missed


def test_every_damage_is_found(pristine, fast_path):
    assert _undetected(pristine, fast_path, 500, seed=random.randrange(1 << 30)) == []


@pytest.mark.long
def test_every_damage_is_found_10000(pristine, fast_path):
    assert _undetected(pristine, fast_path, 10_000, seed=1) == []


@pytest.mark.parametrize("section", ["model", "optim", "train"])
def test_load_refuses_a_flipped_bit_and_names_the_tensor(pristine, tmp_path, build, state_of, section):
    directory = tmp_path / pristine.name
    shutil.copytree(pristine, directory)
    shard = directory / section / "shard-00000-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 4
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"shard-00000.*tensor '"):
        load(directory, state_of(build(2)))
    load(directory, state_of(build(2)), verify="size")  # which does not read hashes


def test_load_falls_back_to_the_older_checkpoint(tmp_path, build, state_of, equal):
    for step in (1, 2):
        save(tmp_path, state_of(build(step)), step=step)
    shard = tmp_path / "step-00000002/model/shard-00000-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 4
    shard.write_bytes(data)
    back = build(7)
    report = load(tmp_path, state_of(back), fallback=True)
    assert report.step == 1
    assert equal(back, build(1))


class _Canary:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickle_in_any_slot_is_refused_and_not_run(pristine, tmp_path, build, state_of):
    canary = tmp_path / "executed"
    payloads = [pickle.dumps(_Canary(canary), protocol=p) for p in (0, 2, 4)]
    for file in sorted(p.relative_to(pristine) for p in pristine.rglob("*") if p.is_file()):
        for payload in payloads:
            directory = tmp_path / pristine.name
            shutil.copytree(pristine, directory)
            (directory / file).write_bytes(payload)
            with pytest.raises(CheckpointError):
                load(directory, state_of(build(2)))
            assert latest(tmp_path) is None
            shutil.rmtree(directory)
    for payload in payloads:
        adapter = tmp_path / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_config.json").write_text("{}")
        (adapter / "adapter_model.safetensors").write_bytes(payload)
        with pytest.raises(CheckpointError):
            load_adapter(adapter)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "model/../../secret", "a\x00b", "..", "model//x", "~/x", "C:\\x", "-x", ""]
)
def test_manifest_cannot_name_a_file_outside(pristine, tmp_path, build, state_of, name):
    from automodel_ckpt import manifest

    directory = tmp_path / pristine.name
    shutil.copytree(pristine, directory)
    body = json.loads((directory / "MANIFEST.json").read_bytes())
    del body["digest"]
    body["files"][name] = {"bytes": 0, "xxh3": ""}
    body["digest"] = manifest._digest(body)
    (directory / "MANIFEST.json").write_bytes(manifest._canonical(body))
    with pytest.raises(UnsafeFile, match="only relative names below"):
        load(directory, state_of(build(2)))


def test_links_and_devices_are_not_followed(pristine, tmp_path, build, state_of):
    for make in ("link", "fifo"):
        directory = tmp_path / make / pristine.name
        shutil.copytree(pristine, directory)
        shard = directory / "model/shard-00000-of-00001.safetensors"
        if make == "link":
            outside = tmp_path / "outside"
            outside.write_bytes(shard.read_bytes())
            shard.unlink()
            shard.symlink_to(outside)
        else:
            shard.unlink()
            os.mkfifo(shard)
        for level in ("hash", "none"):
            with pytest.raises(CheckpointError, match="link"):
                load(directory, state_of(build(2)), verify=level)


def _header(table) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text


_F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 200_000_000) + b"{}",
        _header(b"[1]"),
        _header(b"{" * 50_000),
        _header({"a": {**_F32, "data_offsets": [0, 4]}}) + bytes(8),
        _header({"a": {**_F32, "data_offsets": [-8, 0]}}) + bytes(8),
        _header({"a": {**_F32, "data_offsets": [8, 16]}}) + bytes(16),
        _header({"a": _F32, "b": _F32}) + bytes(8),
        _header({"a": _F32}) + bytes(9),
        _header({"a": _F32}) + bytes(7),
        _header({"a": {**_F32, "dtype": "F128"}}) + bytes(8),
        _header({"a": {**_F32, "shape": [1 << 62, 1 << 62]}}) + bytes(8),
        _header({"a": {**_F32, "shape": [True, 2]}}) + bytes(8),
        _header({"a": {**_F32, "shape": [2.0]}}) + bytes(8),
        _header({"a": 3}),
        _header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        )
        + bytes(4),
        b"PK\x03\x04" + bytes(40),
        b"\x1f\x8b" + bytes(40),
    ],
)
def test_hostile_safetensors_header_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_tensors(path)
