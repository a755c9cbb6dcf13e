"""Rows in every form become the same messages, and what does not fit is a bad row."""

from typing import Any

import pytest

from automodel_data.errors import BadRow
from automodel_data.vlm.conversation import SLOTS, parse_row
from automodel_data.vlm.cord_v2 import json2token, make_cord_v2_dataset
from automodel_data.vlm.cv17 import make_cv17_dataset
from automodel_data.vlm.medpix import make_medpix_dataset
from automodel_data.vlm.mock import make_mock_vlm_dataset
from automodel_data.vlm.rdr import make_rdr_dataset

SLOT = SLOTS["image"]
ANSWER = {"role": "assistant", "content": "b"}


def parts(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}, ANSWER]}


SAME = [
    parts({"type": "image", "image": "x.png"}, {"type": "text", "text": "a"}),
    parts({"type": "image_url", "image_url": {"url": "x.png"}}, {"type": "text", "text": "a"}),
    parts({"type": "image", "path": "x.png", "text": None}, {"type": "text", "text": "a", "image": None}),
    {"conversations": [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}], "image": "x.png"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "images": ["x.png"]},
    {"conversation": parts({"type": "image", "image": "x.png"}, {"type": "text", "text": "a"})["messages"]},
]


@pytest.mark.parametrize("row", SAME)
def test_every_form_is_the_same_conversation(row: dict[str, Any]) -> None:
    parsed = parse_row(row)
    assert [m["content"] for m in parsed.text.messages] == [f"{SLOT}a", "b"]
    assert [(m.kind, m.ref) for m in parsed.media] == [("image", "x.png")]


BAD = [
    ({**SAME[3], "image": None, "images": ["x", "y"]}, "more image files than"),
    ({"conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "b"}], "image": "x"},
     "more <image> tags than"),
    (parts({"type": "video", "video": "v"}), "type 'video' are not known"),
    (parts({"type": "image"}), "image part without image"),
    (parts({"type": "text"}), "text part without text"),
    (parts({"type": "text", "text": f"a{SLOT}"}), "private-use"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "why"), BAD)
def test_what_does_not_fit_is_a_bad_row(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        parse_row(row)


def test_media_keep_the_order_of_their_tags() -> None:
    value = "<image> and <audio> and <image>"
    row = {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "b"}]}
    parsed = parse_row({**row, "images": ["1", "3"], "audio": "2"})
    assert [m.ref for m in parsed.media] == ["1", "2", "3"]


def test_json_becomes_tags() -> None:
    value = {"menu": [{"nm": "tea", "price": 3}, {"nm": "pie"}], "total": {"sum": "9"}}
    tags = "<s_nm>tea</s_nm><s_price>3</s_price><sep/><s_nm>pie</s_nm>"
    assert json2token(value, sort_json_key=False) == f"<s_menu>{tags}</s_menu><s_total><s_sum>9</s_sum></s_total>"
    assert json2token({"a": 1, "b": 2}) == "<s_b>2</s_b><s_a>1</s_a>"


def test_named_datasets_give_conversations_without_decoding() -> None:
    image = {"bytes": b"never decoded", "path": None}
    made = {
        "rdr": make_rdr_dataset([{"image": image, "text": "t"}]),
        "cord": make_cord_v2_dataset([{"image": image, "ground_truth": '{"gt_parse": {"total": "9"}}'}]),
        "medpix": make_medpix_dataset([{"image_id": image, "question": "q", "answer": "t"}]),
    }
    answers = {"rdr": "t", "cord": "<s_total>9</s_total>", "medpix": "t"}
    for name, rows in made.items():
        user, assistant = rows[0]["conversation"]
        assert user["content"][0] == {"type": "image", "image": image}
        assert assistant["content"][0]["text"] == answers[name]
    speech = make_cv17_dataset([{"audio": image, "transcription": "t"}])[0]["conversation"]
    assert speech[0]["content"][0] == {"type": "audio", "audio": image}


def test_mock_is_named_by_its_seed() -> None:
    first, second = (make_mock_vlm_dataset(num_samples=4, seed=3, text_only_every=2) for _ in range(2))
    assert [len(r["conversation"][0]["content"]) for r in (first[i] for i in range(4))] == [1, 2, 1, 2]
    assert first[1]["conversation"][1] == second[1]["conversation"][1]
