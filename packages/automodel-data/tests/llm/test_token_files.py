from __future__ import annotations

import numpy as np
import pytest

from automodel_data import MegatronDataset, NanoGPTDataset
from automodel_data.errors import DataError


def write_megatron(prefix, documents, dtype=np.uint16, code=8) -> None:
    sizes = np.array([len(d) for d in documents], np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) * np.dtype(dtype).itemsize
    head = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + bytes([code])
    head += len(documents).to_bytes(8, "little") + (len(documents) + 1).to_bytes(8, "little")
    tail = np.arange(len(documents) + 1, dtype=np.int64)
    prefix.with_suffix(".idx").write_bytes(head + sizes.tobytes() + starts.tobytes() + tail.tobytes())
    prefix.with_suffix(".bin").write_bytes(np.concatenate(documents).astype(dtype).tobytes())


@pytest.mark.parametrize(("dtype", "code"), [(np.uint16, 8), (np.int32, 4), (np.int64, 5)])
def test_megatron_blocks_are_the_documents_in_order(tmp_path, dtype, code):
    documents = [np.arange(5), np.arange(100, 107), np.arange(40_000, 40_009)]
    write_megatron(tmp_path / "d", documents, dtype, code)
    for given in (tmp_path / "d", str(tmp_path / "d.bin")):
        dataset = MegatronDataset(given, seq_length=4)
        tokens = [token for i in range(len(dataset)) for token in dataset[i]["input_ids"]]
        assert tokens == np.concatenate(documents)[:20].tolist()
        assert dataset.num_tokens_cut == 1
        assert dataset[0]["labels"] == dataset[0]["input_ids"]
        assert dataset.lengths.tolist() == [4] * 5


@pytest.mark.parametrize("kind", ["missing", "magic", "short"])
def test_damaged_megatron_files_are_refused(tmp_path, kind):
    write_megatron(tmp_path / "d", [np.arange(9)])
    if kind == "missing":
        (tmp_path / "d.idx").unlink()
    elif kind == "magic":
        (tmp_path / "d.idx").write_bytes(b"x" * 60)
    else:
        (tmp_path / "d.bin").write_bytes(b"xx")
    message = {"missing": "is not there", "magic": "no Megatron index", "short": "does not fit its index"}[kind]
    with pytest.raises(DataError, match=message):
        MegatronDataset(tmp_path / "d", seq_length=4)


def test_nanogpt_shards_with_and_without_header(tmp_path):
    header = np.zeros(256, np.int32)
    header[:3] = (20240520, 1, 10)
    (tmp_path / "a_0.bin").write_bytes(header.tobytes() + np.arange(10, dtype=np.uint16).tobytes())
    (tmp_path / "a_1.bin").write_bytes(np.arange(60_000, 60_006, dtype=np.uint16).tobytes())
    dataset = NanoGPTDataset(tmp_path / "a_*.bin", seq_length=4)
    assert [dataset[i]["input_ids"] for i in range(len(dataset))] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [60000, 60001, 60002, 60003],
    ]
    assert dataset.num_tokens_cut == 4
    with pytest.raises(DataError, match="no block of seq_length=64"):
        NanoGPTDataset(tmp_path / "a_*.bin", seq_length=64)
    (tmp_path / "a_0.bin").write_bytes(header.tobytes() + b"xx")
    with pytest.raises(DataError, match="is cut short: its header names 10 tokens"):
        NanoGPTDataset(tmp_path / "a_0.bin", seq_length=4)
    with pytest.raises(DataError, match="nothing is found"):
        NanoGPTDataset(tmp_path / "b_*.bin", seq_length=4)


@pytest.mark.more  # Megatron takes seconds to import
@pytest.mark.parametrize("vocab_size", [50_000, 100_000])
def test_files_that_megatron_wrote_and_what_megatron_reads_of_them(tmp_path, vocab_size):
    name = "megatron.core.datasets.indexed_dataset"
    indexed = pytest.importorskip(name, reason="megatron-core is not installed (pip install --no-deps megatron-core)")
    import torch

    documents = [np.random.default_rng(i).integers(0, vocab_size, 3 + 7 * i) for i in range(20)]
    dtype = indexed.DType.optimal_dtype(vocab_size)
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=dtype)
    for document in documents:
        builder.add_item(torch.from_numpy(document))
        builder.end_document()
    builder.finalize(str(tmp_path / "d.idx"))
    ours = MegatronDataset(tmp_path / "d", seq_length=8)
    tokens = [token for i in range(len(ours)) for token in ours[i]["input_ids"]]
    theirs = indexed.IndexedDataset(str(tmp_path / "d"))
    read = np.concatenate([theirs[i] for i in range(len(theirs))])
    assert read.tolist() == np.concatenate(documents).tolist()
    assert tokens == read[: len(tokens)].tolist()
    assert len(tokens) + ours.num_tokens_cut == len(read)
    # And what is written here by hand, as the tests above have it, is what Megatron reads.
    write_megatron(
        tmp_path / "h", documents, np.uint16 if vocab_size < 65_500 else np.int32, 8 if vocab_size < 65_500 else 4
    )
    assert (tmp_path / "h.bin").read_bytes() == (tmp_path / "d.bin").read_bytes()
    assert (tmp_path / "h.idx").read_bytes() == (tmp_path / "d.idx").read_bytes()
