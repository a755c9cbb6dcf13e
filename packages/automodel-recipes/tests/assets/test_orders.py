"""The demo measures what it claims: nothing of a held-out order was ever seen."""

import json
from collections import Counter


def inputs_and_answers(rows):
    return {text["content"] for row in rows for text in row["messages"]}


def pairs(rows, left, right):
    answers = [json.loads(row["messages"][-1]["content"]) for row in rows]
    return {(answer[left], answer[right]) for answer in answers}


def test_shipped_orders_are_those_of_the_seeded_script(orders, script):
    make = script("make_tiny_assets")
    train, heldout = script("tiny.orders").make_split(make.NUM_TRAIN, make.NUM_HELDOUT, make.ORDERS_SEED)
    assert orders == {"train": train, "heldout": heldout}


def test_no_heldout_input_or_answer_is_in_the_training_rows(orders):
    train, heldout = inputs_and_answers(orders["train"]), inputs_and_answers(orders["heldout"])
    assert len(orders["heldout"]) >= 200
    assert len(heldout) == 2 * len(orders["heldout"])
    assert len(train) == 2 * len(orders["train"])
    assert not train & heldout


def test_heldout_orders_join_words_that_no_training_order_joins(orders):
    for left, right in (("name", "city"), ("item", "color")):
        assert not pairs(orders["train"], left, right) & pairs(orders["heldout"], left, right)


def test_no_heldout_input_or_answer_is_in_the_pretraining_text(orders, script):
    make, corpus = script("make_tiny_assets"), script("tiny.corpus")
    text = "\n".join(corpus.documents(make.CORPUS_SEED, make.NUM_DOCUMENTS))
    assert "lives in" in text  # the search below is over something
    assert [string for string in inputs_and_answers(orders["heldout"]) if string in text] == []


def test_no_pretraining_record_has_the_keys_of_an_order(script):
    corpus = script("tiny.corpus")
    for text in corpus.documents(3, 20_000):
        for line in text.splitlines():
            assert not ('"item"' in line and '"quantity"' in line)


def test_shuffled_answers_are_the_same_answers_at_other_questions(orders, script):
    shuffled = script("tiny.orders").shuffle_answers(orders["train"], seed=1)
    own, other = ([row["messages"][1]["content"] for row in rows] for rows in (orders["train"], shuffled))
    assert Counter(own) == Counter(other)
    assert sum(a == b for a, b in zip(own, other)) < 0.01 * len(own)
    assert [row["messages"][0] for row in shuffled] == [row["messages"][0] for row in orders["train"]]


def test_answers_are_one_line_of_compact_json(orders):
    for row in orders["train"] + orders["heldout"]:
        answer = row["messages"][-1]["content"]
        assert json.dumps(json.loads(answer)) == answer
        assert list(json.loads(answer)) == ["item", "color", "quantity", "name", "city"]
