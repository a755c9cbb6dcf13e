"""Whoever watches is told how far tokenising is; nobody by default."""

import json

from automodel_data.progress import counted, watch_progress


def test_nobody_is_told_outside_the_block():
    told = []
    with watch_progress(lambda *seen: told.append(seen)):
        assert list(counted("abc", "read", 3)) == ["a", "b", "c"]
    assert told[-1] == ("read", 3, 3)
    count = len(told)
    assert list(counted("abc", "read", 3)) == ["a", "b", "c"]
    assert len(told) == count


def test_items_may_differ_in_size():
    told = []
    with watch_progress(lambda *seen: told.append(seen)):
        list(counted([5, 7], "save", 12, size=int))
    assert told[0] == ("save", 5, 12)
    assert told[-1] == ("save", 12, 12)


def test_tokenising_is_told(tmp_path, tokenizer):
    from automodel_data.llm.pretrain import TextPretrainDataset

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i} of a few"}) + "\n" for i in range(40)))
    told = []
    with watch_progress(lambda *seen: told.append(seen)):
        TextPretrainDataset(str(path), tokenizer, seq_length=16, cache=False)
    assert ("tokenise", 40, 40) in told
