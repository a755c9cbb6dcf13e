"""Chat rows in every format, and what becomes of rows that cannot be used."""

from __future__ import annotations

import json
import random

import pytest

from automodel_data import ChatDataset
from automodel_data.errors import DataError
from automodel_data.fingerprint import stream_hash
from automodel_data.streaming import ChatIterableDataset

MESSAGES = [{"role": "user", "content": "What is 12 times 7?"}, {"role": "assistant", "content": "84"}]
FORMATS = {
    "messages": {"messages": MESSAGES},
    "messages as JSON text": {"messages": json.dumps(MESSAGES)},
    "text parts": {"messages": [MESSAGES[0], {"role": "assistant", "content": [{"type": "text", "text": "84"}]}]},
    "nulls from Arrow": {"messages": [{**m, "tool_calls": None, "name": None} for m in MESSAGES]},
    "sharegpt": {"conversations": [{"from": "human", "value": "What is 12 times 7?"}, {"from": "gpt", "value": "84"}]},
    "alpaca": {"instruction": "What is", "input": "12 times 7?", "output": "84"},
    "prompt-completion": {"prompt": "What is 12 times 7?", "completion": "84"},
    "prompt-completion as messages": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
}
GOOD = {"messages": MESSAGES}


def write(path, rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_trains_the_answer_and_the_stop_token(name, tmp_path, tokenizer, supervised):
    dataset = ChatDataset(write(tmp_path / "a.jsonl", [FORMATS[name]]), tokenizer)
    assert supervised(tokenizer, dataset[0]) == "84<|im_end|>"
    assert "What is" in tokenizer.decode(dataset[0]["input_ids"])
    assert len(dataset) == 1


def test_mixed_formats_in_one_file(tmp_path, tokenizer, supervised):
    dataset = ChatDataset(write(tmp_path / "a.jsonl", FORMATS.values()), tokenizer)
    assert [supervised(tokenizer, dataset[i]) for i in range(len(dataset))] == ["84<|im_end|>"] * len(FORMATS)


def test_pretokenised_rows_pass_through(tokenizer):
    dataset = ChatDataset([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 6]}], tokenizer)
    assert dataset[0] == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert dataset[1]["labels"] == [5, 6]
    report = dataset.report
    assert (report.num_tokens, report.num_label_tokens) == (5, 3)  # nothing predicts a row's first token


def test_prior_answers_of_a_prompt_are_context(tokenizer, supervised):
    row = {"prompt": [*MESSAGES, {"role": "user", "content": "And 8?"}], "completion": "96"}
    assert supervised(tokenizer, ChatDataset([row], tokenizer)[0]) == "96<|im_end|>"


def test_train_flags_and_weights_of_messages(tokenizer, supervised):
    turns = [*MESSAGES, {"role": "user", "content": "And 8?"}, {"role": "assistant", "content": "96"}]
    for off in ({"train": False}, {"weight": 0}):
        row = {"messages": [turns[0], {**turns[1], **off}, *turns[2:]]}
        assert supervised(tokenizer, ChatDataset([row], tokenizer)[0]) == "96<|im_end|>"


@pytest.mark.parametrize("key", ["train", "weight"])
def test_a_share_of_a_token_is_refused_with_the_way_out(key, tokenizer):
    row = {"messages": [MESSAGES[0], {**MESSAGES[1], key: 0.5}]}
    message = rf"/messages/1/{key}: a message's train flag must be true, false, 0 or 1.*Got 0\.5.*weight in a mixture"
    with pytest.raises(DataError, match=message):
        ChatDataset([row], tokenizer, on_bad="fail")
    whole = {"messages": [MESSAGES[0], {**MESSAGES[1], key: 1.0}]}
    assert ChatDataset([whole], tokenizer).report.num_bad == 0


def test_columns_of_other_names(tmp_path, tokenizer, supervised):
    row = {"dialog": MESSAGES, "functions": '[{"name": "f"}]', "messages": 5}
    path = write(tmp_path / "a.jsonl", [row])
    dataset = ChatDataset(path, tokenizer, column_mapping={"messages": "dialog", "tools": "functions"})
    assert supervised(tokenizer, dataset[0]) == "84<|im_end|>"
    streamed = ChatIterableDataset(path, tokenizer, column_mapping={"messages": "dialog"})
    assert [{k: v for k, v in one.items() if k != "sample_id"} for one in streamed] == [dataset[0]]
    mapping = {"instruction": "q", "output": "a"}
    alpaca = ChatDataset([{"q": "What is 12 times 7?", "a": "84"}], tokenizer, column_mapping=mapping)
    assert alpaca[0] == ChatDataset([FORMATS["messages"]], tokenizer)[0]
    swapped = [{"messages": "What is 12 times 7?", "said": "84"}]  # a known name under another meaning
    mapping = {"prompt": "messages", "completion": "said"}
    assert supervised(tokenizer, ChatDataset(swapped, tokenizer, column_mapping=mapping)[0]) == "84<|im_end|>"
    with pytest.raises(DataError, match=r"missing column 'talk'\. The row has: dialog, functions, messages"):
        ChatDataset(path, tokenizer, column_mapping={"messages": "talk"})
    with pytest.raises(DataError, match=r"column_mapping has the keys \['chat'\].*messages: dialog; known are"):
        ChatDataset(path, tokenizer, column_mapping={"chat": "dialog"})


BAD_ROWS = {
    '{"messages": [': "broken JSON",
    '"text"': "the row is str, not an object",
    '{"rows": 1}': "no known format has the columns ['rows']",
    '{"messages": []}': "/messages: the conversation is empty",
    '{"messages": 5}': "/messages: int instead of a list",
    '{"messages": "[{"}': "/messages: not valid JSON text",
    '{"messages": [5]}': "/messages/0: a message is int, not an object",
    '{"messages": [{"role": "king", "content": "a"}]}': "/messages/0/role: unknown role",
    '{"messages": [{"content": "a"}]}': "/messages/0/role: unknown role",
    '{"messages": [{"role": "user", "content": null}]}': "/messages/0/content: content is null",
    '{"messages": [{"role": "user", "content": 5}]}': "/messages/0/content: content is int, not text",
    '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}': "content: content parts ['image']",
    '{"messages": [{"role": "user", "content": "a"}]}': "/messages: no assistant turn to train on",
    '{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}': "/messages/0/tool_calls/0: a tool call",
    '{"messages": [{"role": "assistant", "content": "a", "train": "maybe"}]}': "/messages/0/train: a message's",
    '{"messages": [{"role": "assistant", "content": "a"}], "tools": "nope"}': "/tools: not valid JSON text",
    '{"messages": [{"role": "assistant", "content": "a"}], "tools": [1]}': "/tools: a tool is not an object",
    '{"messages": [{"role": "assistant", "content": "a", "reasoning_content": 3}]}': "reasoning_content is int",
    '{"conversations": [{"from": "human"}]}': "/conversations/0: a turn needs `from` and `value`",
    '{"conversations": "x"}': "/conversations: not valid JSON text",
    '{"instruction": 5, "output": "a"}': "/instruction: instruction is int, not text",
    '{"instruction": "a", "output": null}': "content is null",
    '{"instruction": "a", "output": "b", "history": [["x"]]}': "/history: a history entry is not a pair",
    '{"prompt": "a", "completion": 7}': "content is int, not text",
    '{"input_ids": [1, 2], "labels": [1]}': "/input_ids: input_ids and labels must be lists of equal length",
    '{"input_ids": ["a", "b"]}': "/input_ids: input_ids or labels hold something that is no token id",
    '{"input_ids": [1, 2], "labels": [-100, -100]}': "no supervised token",
    '{"input_ids": 5}': "/input_ids",
    '{"prompt": "a", "completion": "\\ud800"}': "text with half of a surrogate pair",
    '{"input_ids": [1, -5]}': "/input_ids: input_ids or labels hold something that is no token id",
    '{"messages": "' + "[" * 100_000 + '"}': "/messages: not valid JSON text",
    '{"text": "plain"}': "rows of format 'text' hold no conversation",
}


def test_malformed_rows_of_every_kind_are_reported_and_nothing_else_is_lost(tmp_path, tokenizer):
    kinds = list(BAD_ROWS)
    bad = [kinds[i % len(kinds)] for i in range(200)]
    good = [{"messages": [MESSAGES[0], {**MESSAGES[1], "content": str(i)}]} for i in range(200)]
    lines = [line for pair in zip(bad, good) for line in pair]
    path = write(tmp_path / "a.jsonl", lines)
    dataset = ChatDataset(path, tokenizer, max_bad_fraction=0.5)
    assert len(dataset) == 200
    assert dataset.source_rows.tolist() == list(range(1, 400, 2))
    report = dataset.report
    assert (report.num_rows, report.num_kept, report.num_bad) == (400, 200, 200)
    assert [record.line for record in report.bad_rows] == list(range(1, 401, 2))
    for record, row in zip(report.bad_rows, bad):
        assert record.source == path
        assert BAD_ROWS[row] in str(record), (row, str(record))
    report.write_bad_rows(tmp_path / "bad.jsonl")
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 200


def mutated(value, rng):
    """A copy of a JSON value with some parts replaced by parts of other kinds."""
    if rng.random() < 0.15:
        return rng.choice(
            [None, 5, -1.5, True, "", "x", "{", [], {}, ["x"], {"role": "user"}, "\ud800", "<|im_end|>", [[]]]
        )
    if isinstance(value, dict):
        return {k: mutated(v, rng) for k, v in value.items() if rng.random() > 0.05}
    if isinstance(value, list):
        return [mutated(v, rng) for v in value]
    return value


def test_random_damage_never_crashes_and_every_row_is_accounted_for(tokenizer, make_tokenizer):
    rng = random.Random(0)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    tools = {"messages": [MESSAGES[0], call, {"role": "tool", "content": "1"}, MESSAGES[1]], "tools": [{"name": "f"}]}
    seeds = [*FORMATS.values(), tools, {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}]
    rows = [GOOD, *(mutated(rng.choice(seeds), rng) for _ in range(1500))]
    for tok in (tokenizer, make_tokenizer("qwen3")):
        report = ChatDataset(rows, tok, max_bad_fraction=1.0).report
        assert report.num_rows == len(rows) == report.num_kept + report.num_bad
        assert 0 < report.num_bad < len(rows)


def test_invalid_utf8_and_control_characters_are_named_and_escaped(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    evil = json.dumps({"messages": [{"role": "\x1b[31mking", "content": "a"}], "\x1b[2J": 1}).encode()
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n" + evil + b'\n{"\\u001b[2J": 1}\n')
    dataset = ChatDataset(str(path), tokenizer, max_bad_fraction=1.0)
    records = [str(record) for record in dataset.report.bad_rows]
    assert "invalid UTF-8 at byte 0" in records[0]
    assert not any("\x1b" in record for record in records)


def test_broken_json_on_line_17_names_the_line(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [GOOD] * 16 + ['{"messages": [}'] + [GOOD] * 3)
    with pytest.raises(DataError, match=r"a\.jsonl:17: broken JSON.*max_bad_fraction"):
        ChatDataset(path, tokenizer)
    with pytest.raises(DataError, match=r"a\.jsonl:17: broken JSON.*on_bad='skip'"):
        ChatDataset(path, tokenizer, on_bad="fail")
    assert len(ChatDataset(path, tokenizer, max_bad_fraction=0.1)) == 19


def test_nothing_to_train_on_says_why(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"can be trained on: .*no known format.*Known: messages; conversations"):
        ChatDataset(write(tmp_path / "a.jsonl", [{"q": 1}]), tokenizer)
    with pytest.raises(DataError, match="all 3 rows are longer than seq_length=4"):
        ChatDataset([GOOD] * 3, tokenizer, seq_length=4)


@pytest.mark.more  # ten megabytes take a tiny vocabulary a quarter of a minute
def test_a_ten_megabyte_row_is_read(tmp_path, tokenizer):
    long = {"messages": [{"role": "user", "content": "a b " * 2_500_000}, MESSAGES[1]]}
    dataset = ChatDataset(write(tmp_path / "a.jsonl", [long, GOOD]), tokenizer, seq_length=64)
    assert len(dataset) == 1
    assert dataset.report.num_too_long == 1


LONG = {
    "messages": [
        {"role": "user", "content": "What is 12 times 7? " * 5},
        {"role": "assistant", "content": "It is 84. " * 5},
    ]
}


@pytest.mark.parametrize("overflow", ["drop", "truncate_right", "truncate_left", "error"])
def test_overflow_policies_do_what_they_say_and_count_it(overflow, tokenizer):
    whole = ChatDataset([LONG], tokenizer)[0]
    n = len(whole["input_ids"]) - 7

    def build():
        return ChatDataset([LONG, GOOD], tokenizer, seq_length=n, overflow=overflow)

    if overflow == "error":
        with pytest.raises(DataError, match=f"seq_length is {n}, and overflow is 'error'"):
            build()
        return
    dataset = build()
    if overflow == "drop":
        assert (len(dataset), dataset.report.num_too_long, dataset.report.num_truncated) == (1, 1, 0)
        return
    assert (len(dataset), dataset.report.num_truncated, dataset.report.num_tokens_cut) == (2, 1, 7)
    part = slice(None, -7) if overflow == "truncate_right" else slice(7, None)
    assert dataset[0] == {key: value[part] for key, value in whole.items()}


def test_a_row_whose_answer_is_cut_off_is_bad_not_trained_on_nothing(tokenizer):
    dataset = ChatDataset([LONG, GOOD], tokenizer, seq_length=30, overflow="truncate_right", max_bad_fraction=0.5)
    assert len(dataset) == 1
    assert dataset.report.bad_rows[0].why == "no supervised token within seq_length"


def many(n: int) -> list[dict]:
    rows = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": str(i)}]}
        for i in range(n)
    ]
    return [*rows[: n // 2], "{broken", *rows[n // 2 :]]


def test_cached_equals_fresh_and_two_processes_equal_one(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("automodel_data.build._CHUNK", 200)  # several tasks for each process
    path = write(tmp_path / "a.jsonl", many(900))
    fresh = ChatDataset(path, tokenizer, cache=False)
    two = ChatDataset(path, tokenizer, cache=False, num_proc=2)
    built, cached = (ChatDataset(path, tokenizer) for _ in range(2))
    hashes = {stream_hash(d[i] for i in range(len(d))) for d in (fresh, two, built, cached)}
    assert len(hashes) == 1
    assert fresh.report == two.report == built.report == cached.report
    assert fresh.lengths.tolist() == cached.lengths.tolist()


def test_streamed_equals_map_style(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", many(900))
    mapped = ChatDataset(path, tokenizer)
    streamed = ChatIterableDataset(path, tokenizer)
    rows = list(streamed)
    assert stream_hash(rows) == stream_hash(mapped[i] for i in range(len(mapped)))
    assert [row["sample_id"] for row in rows] == mapped.source_rows.tolist()
    assert streamed.report == mapped.report


@pytest.mark.parametrize(
    ("option", "value"),
    [("mask", "answers"), ("format", "text"), ("overflow", "cut"), ("on_bad", "repair"), ("seq_length", 1)],
)
def test_unknown_settings_list_the_known_ones(option, value, tokenizer):
    with pytest.raises(DataError, match=f"{option}={value!r}"):
        ChatDataset([GOOD], tokenizer, **{option: value})
