"""The datasets that are named in configurations: what they train, and what they say to wrong input."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

import automodel_data
from automodel_data import (
    ColumnMappedTextInstructionDataset,
    HellaSwag,
    TextPretrainDataset,
    build_unpacked_dataset,
    make_squad_dataset,
)
from automodel_data.errors import DataError

MAPPING = {"context": "ctx", "question": "q", "answer": "a"}
ROW = {"ctx": "The fox is brown.", "q": "What is the fox?", "a": "brown"}


@pytest.fixture(scope="module")
def bare(make_tokenizer):
    return make_tokenizer()


def test_column_mapped_without_template_trains_the_whole_answer_and_eos(bare, supervised):
    dataset = ColumnMappedTextInstructionDataset([ROW], MAPPING, bare)
    assert supervised(bare, dataset[0]).lstrip(" ") == "brown<|im_end|>"
    assert bare.decode(dataset[0]["input_ids"]) == "The fox is brown. What is the fox? brown<|im_end|>"


@pytest.mark.parametrize("answer", ["x", "7", "\u00e9", 12, 1.5])
def test_one_token_answers_are_kept(answer, bare, supervised):
    dataset = ColumnMappedTextInstructionDataset([{**ROW, "a": answer}], MAPPING, bare)
    assert supervised(bare, dataset[0]).strip(" ") == f"{answer}<|im_end|>"


def test_column_mapped_with_template(tokenizer, supervised):
    dataset = ColumnMappedTextInstructionDataset([ROW], MAPPING, tokenizer)
    assert supervised(tokenizer, dataset[0]) == "brown<|im_end|>"
    assert "user\nThe fox is brown.\nWhat is the fox?<|im_end|>" in tokenizer.decode(dataset[0]["input_ids"])
    everything = ColumnMappedTextInstructionDataset([ROW], MAPPING, tokenizer, answer_only_loss_mask=False)[0]
    assert everything["labels"] == everything["input_ids"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"question": "q"}, "'question' and 'answer' are needed"),
        ({"question": "q", "answer": "a", "reply": "b"}, "column_mapping has the keys"),
        ({"question": "q", "answer": "nope"}, r"missing column 'nope'\. The row has: a, ctx, q"),
    ],
)
def test_column_mapping_mistakes(mapping, message, bare):
    with pytest.raises(DataError, match=message):
        ColumnMappedTextInstructionDataset([ROW], mapping, bare)


def test_null_and_empty_answers_are_bad_rows(bare):
    rows = [ROW, {**ROW, "a": None}, {**ROW, "a": " "}, {**ROW, "a": ["x"]}]
    dataset = ColumnMappedTextInstructionDataset(rows, MAPPING, bare, max_bad_fraction=1)
    assert len(dataset) == 1
    reasons = [record.why for record in dataset.report.bad_rows]
    assert reasons == ["column 'a' is null, not text", "the answer is empty", "column 'a' is list, not text"]


def test_squad(bare, tokenizer, supervised):
    rows = [{"context": "c", "question": "q?", "answers": {"text": ["yes ", "no"], "answer_start": [0, 1]}}]
    for tok in (bare, tokenizer):
        dataset = make_squad_dataset(tok, dataset_name=rows)
        assert supervised(tok, dataset[0]).lstrip(" ") == "yes<|im_end|>"
        assert "Context: c Question: q? Answer:" in tok.decode(dataset[0]["input_ids"])
    with pytest.raises(DataError, match="no gold answer"):
        make_squad_dataset(bare, dataset_name=[{"context": "c", "question": "q", "answers": {"text": []}}])


def test_hellaswag(bare, supervised):
    rows = [{"ctx": "A man", "endings": ["runs.", "flies."], "label": "1"}]
    assert supervised(bare, HellaSwag(rows, bare)[0]).lstrip(" ") == "flies.<|im_end|>"
    with pytest.raises(DataError, match=r"names no ending.*use train or validation"):
        HellaSwag([{**rows[0], "label": ""}], bare)


def test_pretraining_blocks_hold_every_document_closed_by_eos(bare, tmp_path):
    documents = [f"Document {i} says hello. " * (1 + i) for i in range(6)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    dataset = TextPretrainDataset(str(tmp_path / "a.txt"), bare, seq_length=32)
    tokens = [token for i in range(len(dataset)) for token in dataset[i]["input_ids"]]
    expected = [t for d in documents for t in [*bare(d)["input_ids"], bare.eos_token_id]]
    assert tokens == expected[: len(tokens)]
    assert len(expected) - len(tokens) == dataset.report.num_tokens_cut < 32
    assert all(len(dataset[i]["labels"]) == 32 for i in range(len(dataset)))
    with pytest.raises(DataError, match="less than seq_length=100000"):
        TextPretrainDataset(str(tmp_path / "a.txt"), bare, seq_length=100_000)


def test_mock_rows_follow_the_seed():
    one, same, other = (build_unpacked_dataset(num_sentences=20, seed=s) for s in (1, 1, 2))
    assert [one[i] for i in range(20)] == [same[i] for i in range(20)]
    assert [one[i] for i in range(20)] != [other[i] for i in range(20)]
    assert all(2 <= n <= 64 for n in one.lengths)


def test_every_public_name_and_entry_point_loads():
    for name in automodel_data.__all__:
        assert getattr(automodel_data, name) is not None
    assert automodel_data.__all__[1:] == sorted(automodel_data.__all__[1:])
    ours = [p for p in entry_points(group="automodel.components") if p.value.startswith("automodel_data.")]
    assert {"chat", "column_mapped", "default_collater", "text_pretrain", "mock"} <= {p.name for p in ours}
    for point in ours:
        if not point.value.startswith(("automodel_data.vlm", "automodel_data.collate.vlm")):
            assert callable(point.load())


def test_unknown_names_raise_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        automodel_data.Nope  # noqa: B018
