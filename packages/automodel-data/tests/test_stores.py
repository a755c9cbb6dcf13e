"""The clients of real stores against servers on this machine: S3, Google, and the Hugging Face hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_servers import GoogleBucket, Hub, serving

from automodel_data.errors import DataError
from automodel_data.sources import open_source
from automodel_data.stream_sources import START, open_stream

pytestmark = pytest.mark.more  # clients of clouds take seconds to import

TRAIN, TEST = b'{"n": 0}\n{"n": 1}\n{"n": 2}\n', b'{"n": 3}\n'


def check_store(root: str, put) -> None:
    """A file, a directory, a glob, another version of a file, and a file that is not there."""
    put("d/train.jsonl", TRAIN)
    put("d/test.jsonl", TEST)
    source = open_source(f"{root}/d/train.jsonl")
    assert [source[i]["n"] for i in range(len(source))] == [0, 1, 2]
    assert source.place(1) == (f"{root}/d/train.jsonl", 2)
    assert len(open_source(f"{root}/d")) == 3
    assert open_source(f"{root}/d", split="test")[0]["n"] == 3
    assert len(open_source(f"{root}/d/*.jsonl")) == 4
    put("d/train.jsonl", TRAIN.replace(b"0", b"7"))
    assert open_source(f"{root}/d/train.jsonl")[0]["n"] == 7
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: FileNotFoundError.*Check the address"):
        open_source(f"{root}/d/none.jsonl")


def test_s3(monkeypatch):
    s3fs = pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    moto = pytest.importorskip("moto.server", reason="the S3 server of this test is moto's")
    for key, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        s3fs.S3FileSystem.clear_instance_cache()
        filesystem = s3fs.S3FileSystem()
        filesystem.mkdir("bucket")
        check_store("s3://bucket", lambda name, data: filesystem.pipe(f"bucket/{name}", data))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(DataError, match=r"NoCredentialsError.*Check the address and the credentials"):
            open_source("s3://bucket/d/train.jsonl")
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_google(monkeypatch):
    gcsfs = pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")
    files: dict[str, bytes] = {}
    with serving(GoogleBucket, files) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        gcsfs.GCSFileSystem.clear_instance_cache()
        check_store("gs://bucket", files.__setitem__)
    gcsfs.GCSFileSystem.clear_instance_cache()


HUB = """
import json
from automodel_data.sources import open_source
from automodel_data.stream_sources import START, open_stream
from test_stores import numbers, refusal, streamed

print(json.dumps({
    "url": numbers("hf://datasets/org/name/train.jsonl"),
    "place": open_source("hf://datasets/org/name/train.jsonl").place(2),
    "directory": numbers("hf://datasets/org/name"),
    "revision in url": numbers("hf://datasets/org/name@v1/test.jsonl"),
    "id": numbers("org/name"),
    "id at revision": numbers("org/name@v1"),
    "test split": numbers("org/name", split="test"),
    "no revision": refusal("org/name@v9"),
    "no repository": refusal("org/other"),
    "no split": refusal("org/name", split="dev"),
    "streamed": streamed("org/name@v1"),
}))
"""


def numbers(given: str, **options: str) -> list[int]:
    source = open_source(given, **options)
    return [source[i]["n"] for i in range(len(source))]


def refusal(given: str, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        open_source(given, **options)
    return str(caught.value)


def streamed(given: str) -> list:
    """Rows of a hub set that is read as it arrives, and the position in the middle of it."""
    source = open_stream(given)
    reader = source.read(START)
    numbers = [row["n"] for _, row in reader]
    rest = [row["n"] for _, row in source.read(reader.position(1))]
    return [type(source).__name__, len(source.parts), numbers, rest]


def on_hub(code: str, address: str, directory: Path) -> dict:
    """What ``code`` prints in a process for which ``address`` is the hub."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(directory), "PYTHONPATH": path}
    child = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def test_hub(tmp_path):
    pytest.importorskip("aiohttp", reason="datasets reads from the hub through aiohttp")
    with serving(Hub, {"train.jsonl": TRAIN, "test.jsonl": TEST}) as address:
        found = on_hub(HUB, address, tmp_path)
    assert found["url"] == found["directory"] == found["id"] == found["id at revision"] == [0, 1, 2]
    assert found["test split"] == found["revision in url"] == [3]
    assert found["place"] == ["hf://datasets/org/name/train.jsonl", 3]
    assert found["streamed"] == ["HubRows", 1, [0, 1, 2], [1, 2]]
    for case, message in {
        "no revision": "Revision 'v9' doesn't exist",
        "no repository": "the hub has no such dataset",
        "no split": 'Unknown split "dev". Should be one of',
    }.items():
        assert message in found[case], found[case]
