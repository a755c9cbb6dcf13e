"""Checkpoints in an object store: memory and shared directories behind fsspec stand in for S3."""

import errno
import os
import secrets
import time

import pytest
import torch
from torch import nn

from automodel_ckpt import (
    AlreadyExists,
    AsyncSaver,
    CorruptCheckpoint,
    Keep,
    LeaseHeld,
    SaveFailed,
    best,
    consolidate,
    latest,
    load,
    object_lease,
    save,
    verify,
)
from automodel_ckpt.cli import main
from automodel_ckpt.faults import ranks
from automodel_ckpt.object_store import ObjectStore

fsspec = pytest.importorskip("fsspec")
CHANGES = ("open", "pipe_file", "rm_file")
STRIDES = pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.more)], ids=["every-ninth", "every"])


@pytest.fixture
def url():
    name = f"memory://runs/{secrets.token_hex(4)}"
    yield name
    store = ObjectStore(name)
    object_lease.release(store)
    if store.fs.exists(store.root):
        store.fs.rm(store.root, recursive=True)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch):
    monkeypatch.setattr(object_lease, "SETTLE_S", 0.01)


class _Faulty:
    """A file system with a call before each operation that changes it; ``write`` and ``commit`` of files count too."""

    def __init__(self, fs, before=lambda index, name: None):
        self.fs, self.before, self.count = fs, before, 0

    def _note(self, name):
        index, self.count = self.count, self.count + 1
        self.before(index, name)

    def __getattr__(self, name):
        function = getattr(self.fs, name)

        def call(*arguments, **keys):
            changes = name in CHANGES and (name != "open" or "w" in arguments[1])
            if changes:
                self._note(name)
            result = function(*arguments, **keys)
            return _File(result, self._note) if changes and name == "open" else result

        return call


class _File:
    def __init__(self, file, note):
        self.file, self.note = file, note

    def __getattr__(self, name):
        if name in ("write", "commit"):
            self.note(name)
        return getattr(self.file, name)


def _shared(folder, before=lambda index, name: None):
    """A store that other processes see."""
    fs = fsspec.filesystem("file", auto_mkdir=True, use_listings_cache=False, skip_instance_cache=True)
    return ObjectStore(f"file://{folder}", fs=_Faulty(fs, before))


def test_save_load_and_retention(url, build, state_of, equal):
    for step in (1, 2, 3, 4):
        path = save(url, state_of(build(step)), step=step, keep=Keep(last=2, best="loss"), metrics={"loss": step % 3})
    assert path == latest(url) == f"{url}/step-00000004"
    assert best(url, "loss") == f"{url}/step-00000003"
    store = ObjectStore(url)
    assert store.names() == [".lock", "BEST", "LATEST", "step-00000003", "step-00000004"]
    assert store.read("BEST", limit=99) == b"step-00000003\n"
    assert verify(path).num_files == len(store.files("step-00000004")) - 1
    back = build(9)
    report = load(url, state_of(back))
    assert equal(back, build(4))
    assert (report.path, report.step) == (path, 4)
    load(f"{url}/step-00000003", state_of(back))
    assert equal(back, build(3))
    with pytest.raises(AlreadyExists, match="step is saved once"):
        save(url, state_of(back), step=4)


def test_large_tensors_in_several_requests(url):
    model = nn.Linear(2100, 2100)  # 17 MiB: two blocks
    save(url, {"model": model}, step=1)
    back = nn.Linear(2100, 2100)
    load(url, {"model": back})
    assert torch.equal(back.weight, model.weight)


def test_damage_is_found(url, build, state_of):
    save(url, state_of(build(1)), step=1)
    store = ObjectStore(url)
    key = store.key("step-00000001/model/shard-00000-of-00001.safetensors")
    data = bytearray(store.fs.cat_file(key))
    data[-3] ^= 4
    store.fs.pipe_file(key, bytes(data))
    with pytest.raises(CorruptCheckpoint, match="differs from what was written"):
        verify(url)
    with pytest.raises(CorruptCheckpoint, match="is not what was written"):
        load(url, state_of(build(2)))
    store.fs.pipe_file(key, bytes(data[:-1]))
    assert latest(url) is None


def test_background_save_consolidation_and_command_line(url, tmp_path, build, state_of, capsys):
    made = build(1)
    with AsyncSaver(url) as saver:
        saver.save(state_of(made), step=1)
    assert latest(url) == f"{url}/step-00000001"
    consolidate(url, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()
    for command in (["ls", url], ["verify", url], ["diff", url, url], ["gc", url]):
        assert main(command) == 0, command
    assert "step-00000001" in capsys.readouterr().out
    assert main(["ls", "nowhere://x"]) == 2
    assert "fsspec cannot open nowhere://" in capsys.readouterr().err


def _operations(folder, build, state_of):
    store = _shared(folder)
    save(store, state_of(build(0)), step=1, keep=Keep(last=1))
    before = store.fs._fs.count
    save(store, state_of(build(1)), step=2, keep=Keep(last=1))
    object_lease.release(store)
    return store.fs._fs.count - before


def _child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _top(store):
    """First parts of all objects' names: a store has no empty directories, its stand-in has."""
    return {name.partition("/")[0] for name in store.files("")} - {".lock"}


def _save_in_child(root, made, step, before=lambda index, name: None):
    state = {"model": made.model, "optim": made.optim, "train": made.train}
    return _child(lambda: save(_shared(root, before), state, step=step, keep=Keep(last=1)))


@STRIDES
def test_process_that_ends_at_any_operation_leaves_a_complete_checkpoint(fast_path, build, state_of, equal, stride):
    total = _operations(fast_path / "count", build, state_of)
    assert total > 12
    for index in range(1, total + 1, stride):  # operation 0 takes the lease
        root = fast_path / f"at-{index}"
        assert _save_in_child(root, build(0), 1) == 0
        status = _save_in_child(root, build(1), 2, lambda i, name, end=index: os._exit(137) if i == end else None)
        assert status == 137
        back = build(7)
        report = load(_shared(root), state_of(back))
        assert equal(back, build(report.step - 1))
        assert _save_in_child(root, build(2), 3) == 0
        assert _top(_shared(root)) == {"LATEST", "step-00000003"}
        assert verify(_shared(root)).ok


@STRIDES
def test_failing_operation_keeps_the_old_checkpoint(fast_path, build, state_of, equal, stride):
    total = _operations(fast_path / "count", build, state_of)
    refused = 0
    for index in range(0, total, stride):
        fails_at = []

        def fail(i, name, fails_at=fails_at):
            if fails_at == [i]:
                raise RuntimeError("the client has an error of its own")

        store = _shared(fast_path / f"at-{index}", fail)
        save(store, state_of(build(0)), step=1, keep=Keep(last=1))
        fails_at.append(store.fs._fs.count + index)
        try:
            save(store, state_of(build(1)), step=2, keep=Keep(last=1))
        except SaveFailed as error:
            refused += "EIO (RuntimeError: the client has an error of its own) at file://" in str(error)
        fails_at.clear()
        back = build(7)
        report = load(store, state_of(back))
        assert equal(back, build(report.step - 1))
        save(store, state_of(build(2)), step=3, keep=Keep(last=1))
        assert _top(store) == {"LATEST", "step-00000003"}, index
        object_lease.release(store)
    assert refused >= (total - 12) // stride  # what follows the commit is only tidying, and does not undo it


def test_upload_that_fails_is_aborted(fast_path):
    store = _shared(fast_path)

    def write_half():
        with store.create("x", size=3) as write:
            write(b"ab", 0)
            raise OSError(errno.EIO, "disk")

    with pytest.raises(OSError, match="disk"):
        write_half()
    assert store.files("") == {}


def test_two_runs_of_one_prefix(fast_path, monkeypatch):
    monkeypatch.setattr(object_lease, "BEAT_S", 0.2)
    monkeypatch.setattr(object_lease, "WATCH_S", 5.0)
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        save(_shared(fast_path), {"train": {"x": 1}}, step=1)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(LeaseHeld, match=f"is being written by process {pid} on .*one run at a time"):
        save(_shared(fast_path), {"train": {"x": 2}}, step=2)
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    began = time.monotonic()
    save(_shared(fast_path), {"train": {"x": 2}}, step=2)  # a dead process of this machine is not waited for
    assert time.monotonic() - began < 3
    object_lease.release(_shared(fast_path))


@pytest.mark.parametrize("alive", [True, False])
def test_holder_on_another_machine_counts_while_it_beats(url, monkeypatch, alive):
    import threading

    monkeypatch.setattr(object_lease, "WATCH_S", 0.6)
    store = ObjectStore(url)
    store.write_file(".lock", b'{"host": "elsewhere", "pid": 7, "beat": 1}')
    if alive:
        beat = b'{"host": "elsewhere", "pid": 7, "beat": 2}'
        threading.Timer(0.2, store.write_file, [".lock", beat]).start()
        with pytest.raises(LeaseHeld, match="process 7 on elsewhere"):
            save(url, {"train": {"x": 1}}, step=1)
    else:
        save(url, {"train": {"x": 1}}, step=1)
        # Somebody forced a takeover: this run must not go on writing.
        store.write_file(".lock", b'{"host": "elsewhere", "pid": 8, "beat": 1, "run_id": "f"}')
        with pytest.raises(LeaseHeld, match="process 8 on elsewhere"):
            save(url, {"train": {"x": 2}}, step=2)


def test_step_that_another_run_publishes_meanwhile_is_left_alone(url, build, state_of):
    store = ObjectStore(url)
    save(store, state_of(build(1)), step=1)
    publish = store.publish

    def late(staging, name, manifest, files):
        store.write_file(f"{staging}/MANIFEST.json", b"theirs")
        publish(staging, name, manifest, files)

    store.publish = late
    with pytest.raises(AlreadyExists, match="published by another run meanwhile"):
        save(store, state_of(build(2)), step=2)
    assert store.read("step-00000002/MANIFEST.json", limit=9) == b"theirs"


def test_foreign_objects_under_a_step_are_left_alone(url, build, state_of):
    store = ObjectStore(url)
    store.write_file("step-00000001/notes.txt", b"mine")
    with pytest.raises(AlreadyExists, match="not an unfinished checkpoint of ours"):
        save(url, state_of(build(1)), step=1)
    assert store.read("step-00000001/notes.txt", limit=9) == b"mine"


def test_ranks_share_a_store(fast_path):
    def work(rank):
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 33), nn.Linear(33, 7))
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        fully_shard(model)
        save(_shared(fast_path), {"model": model, "rank": {"r": rank}}, step=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load(_shared(fast_path), {"model": model})
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.full_tensor(), expected[name])

    ranks.run(2, work)
    names = _shared(fast_path).files("step-00000001")
    assert {"model/shard-00000-of-00002.safetensors", "rank-00000.json", "rank-00001.json"} <= names.keys()


@pytest.fixture(scope="module")
def s3():
    """A local S3 server, and a client of it."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (the extras environment has it)")
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = s3fs.S3FileSystem(
        key="k",
        secret="s",
        client_kwargs={"endpoint_url": endpoint},
        use_listings_cache=False,
    )
    client.call_s3("create_bucket", Bucket="bucket")
    yield client
    server.stop()


def test_s3_server(s3, build, state_of, equal):
    store = ObjectStore("s3://bucket/run", fs=s3)
    large = nn.Linear(2100, 2100)  # 17 MiB: an upload in parts
    for step in (1, 2, 3):
        path = save(store, {**state_of(build(step)), "large": large}, step=step, keep=Keep(last=2))
    assert path == latest(store) == "s3://bucket/run/step-00000003"
    assert verify(store).ok
    assert [n for n in store.names() if n.startswith("step")] == ["step-00000002", "step-00000003"]
    back, large_back = build(9), nn.Linear(2100, 2100)
    load(store, {**state_of(back), "large": large_back})
    assert equal(back, build(3))
    assert torch.equal(large_back.weight, large.weight)
    with pytest.raises(AlreadyExists, match="published by another run"):
        store.publish("step-00000003", "step-00000003", b"{}", set())
    object_lease.release(store)
    assert ".lock" not in store.names()


def test_s3_upload_that_fails_leaves_nothing_to_pay_for(s3):
    store = ObjectStore("s3://bucket/aborted", fs=s3)

    def write_half():
        with store.create("x", size=40 << 20) as write:
            write(bytes(20 << 20), 0)
            raise OSError(errno.EIO, "disk")

    with pytest.raises(OSError, match="disk"):
        write_half()
    assert store.files("") == {}
    assert not s3.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads")
