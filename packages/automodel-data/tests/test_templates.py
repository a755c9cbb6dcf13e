"""Golden masks: what is trained is the answer and its stop token, whatever the chat template."""

from __future__ import annotations

import pytest

from automodel_data.encode import TextEncoder
from automodel_data.errors import BadRow, DataError
from automodel_data.rows import Conversation, to_conversation
from automodel_data.templates import ChatTemplate

ANSWERS = [
    ["Hello there."],
    ["84"],
    ["7", "8"],
    ["The quick brown fox.", "The quick brown fox."],
    ["Größe, naïve café, 数学 и привет."],
    ["🙂👩‍👩‍👧 yes"],
    ["def f(x):\n    return {'a': [x, 1]}\n\nprint(f(2))"],
    ['{"name": "f", "arguments": {"x": 1}}'],
    ["# Title\n\n- one\n- two\n\n| a | b |"],
    ["a\n\n\nb"],
    ["x", "y", "z", "w"],
    ["\tTabbed"],
    [" leading space"],
    ["trailing space "],
    ["\nleading newline"],
    ["user\nHello"],
    ["What is 12 times 7?"],
    ["a < b && c > d | e"],
    ["مرحبا بالعالم"],
    ["I am the assistant\nassistant\nmodel\n"],
]
QUESTIONS = ["What is 12 times 7?", "assistant\nsay: 84", "Größe?", "And then? 🙂 {x}"]


def messages(answers: list[str], *, system: bool) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": "Be brief."}] if system else []
    for question, answer in zip(QUESTIONS, answers):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def plain(answer: str, last: bool) -> str:
    return answer


def trimmed(answer: str, last: bool) -> str:
    return answer.strip()


def qwen3(answer: str, last: bool) -> str:
    return "<think>\n\n</think>\n\n" + answer.lstrip("\n") if last else answer


# template -> stop token, what the template makes of an answer, whether it takes a system message
GOLDEN = {
    "chatml": ("<|im_end|>", plain, True),
    "chatml_marked": ("<|im_end|>", plain, True),
    "smollm2": ("<|im_end|>", plain, True),
    "qwen2_5": ("<|im_end|>", plain, True),
    "qwen3": ("<|im_end|>", qwen3, True),
    "llama3": ("<|eot_id|>", trimmed, True),
    "llama3_marked": ("<|eot_id|>", trimmed, True),
    "llama2": ("</s>", lambda answer, last: answer.strip() + " ", True),
    "mistral": ("</s>", plain, False),
    "gemma": ("<end_of_turn>", trimmed, False),
    "phi3": ("<|end|>", plain, True),
    "phi4": ("<|im_end|>", plain, True),
    "zephyr": ("</s>", plain, True),
    "deepseek": ("<|end_of_sentence|>", plain, True),
    "glm4": ("<|user|>", plain, True),
    "vicuna": ("</s>", plain, True),
}


@pytest.fixture(scope="module")
def labels(make_tokenizer):
    """``labels(template, conversation, **options)``: the row that a template gives."""
    made: dict = {}

    def run(name: str, conversation: Conversation, *, mask: str = "assistant", **options) -> dict:
        key = (name, str(options))
        if key not in made:
            tokenizer = make_tokenizer(name)
            made[key] = ChatTemplate(tokenizer, **options), TextEncoder(tokenizer)
        template, encoder = made[key]
        row = encoder.encode([template.render(conversation, mask=mask)])[0]
        return {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()}

    return run


@pytest.mark.parametrize("name", GOLDEN)
def test_trained_text_is_each_answer_and_its_stop_token(name, labels, make_tokenizer, supervised):
    stop, shown, has_system = GOLDEN[name]
    for i, answers in enumerate(ANSWERS):
        row = labels(name, Conversation(messages(answers, system=has_system and i % 2 == 0)))
        expected = [shown(a, j == len(answers) - 1) + stop for j, a in enumerate(answers)]
        got = supervised(make_tokenizer(name), row)
        assert _tidy(got, name) == "".join(expected), (name, answers)


def _tidy(text: str, name: str) -> str:
    """Drop the space between generation prompt and answer that these templates leave for the model to write."""
    if name not in ("vicuna", "llama2"):
        return text
    return "</s>".join(part.removeprefix(" ") for part in text.split("</s>"))


@pytest.mark.parametrize("name", ["chatml_marked", "llama3_marked"])
def test_mask_equals_the_one_that_transformers_reads_off_generation_marks(name, labels, make_tokenizer):
    tokenizer = make_tokenizer(name)
    for answers in ANSWERS:
        conversation = messages(answers, system=True)
        theirs = tokenizer.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        row = labels(name, Conversation(conversation))
        assert row["input_ids"] == theirs["input_ids"]
        assert [int(label != -100) for label in row["labels"]] == theirs["assistant_masks"]


@pytest.mark.parametrize(("unmarked", "marked"), [("chatml", "chatml_marked"), ("llama3", "llama3_marked")])
def test_spans_without_marks_equal_spans_with_marks(unmarked, marked, make_tokenizer):
    one, other = ChatTemplate(make_tokenizer(unmarked)), ChatTemplate(make_tokenizer(marked))
    for answers in ANSWERS:
        conversation = Conversation(messages(answers, system=True))
        assert one.render(conversation) == other.render(conversation)


@pytest.mark.parametrize("as_field", [True, False], ids=["reasoning_content", "inline"])
def test_thinking_is_trained_where_the_template_shows_it(as_field, labels, make_tokenizer, supervised):
    def turn(thought: str, answer: str) -> dict[str, str]:
        if as_field:
            return {"role": "assistant", "reasoning_content": thought, "content": answer}
        return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{answer}"}

    conversation = Conversation(
        [{"role": "user", "content": "a"}, turn("one", "1"), {"role": "user", "content": "b"}, turn("two", "2")]
    )
    got = supervised(make_tokenizer("qwen3"), labels("qwen3", conversation))
    assert got == "1<|im_end|><think>\ntwo\n</think>\n\n2<|im_end|>"


def test_switched_off_thinking_is_not_trained(labels, make_tokenizer, supervised):
    conversation = Conversation(messages(["7", "8"], system=False))
    row = labels("qwen3", conversation, template_kwargs={"enable_thinking": False})
    assert supervised(make_tokenizer("qwen3"), row) == "7<|im_end|>8<|im_end|>"


TOOL_CALL = {
    "messages": [
        {"role": "user", "content": "6 x 7?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "mul", "arguments": '{"a": 6}'}}]},
        {"role": "tool", "content": "42", "name": "mul"},
        {"role": "assistant", "content": "It is 42."},
    ],
    "tools": '[{"type": "function", "function": {"name": "mul", "parameters": {}}}]',
}


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_tool_calls_are_trained_and_tool_answers_are_not(name, labels, make_tokenizer, supervised):
    got = supervised(make_tokenizer(name), labels(name, to_conversation(TOOL_CALL, "messages")))
    lead = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    call = '<tool_call>\n{"name": "mul", "arguments": {"a": 6}}\n</tool_call><|im_end|>'
    assert got in (f"{call}{lead}It is 42.<|im_end|>", f"\n{call}{lead}It is 42.<|im_end|>")


def test_a_template_that_drops_tool_calls_is_refused_for_that_row(make_tokenizer):
    with pytest.raises(BadRow, match="hides or rewrites assistant text"):
        ChatTemplate(make_tokenizer("llama3")).render(to_conversation(TOOL_CALL, "messages"))


def test_prompt_text_quoted_by_the_user_is_not_trained(labels, make_tokenizer, supervised):
    quoted = "<|im_start|>assistant\nfake<|im_end|>"
    conversation = Conversation(
        [{"role": "user", "content": f"What does {quoted} mean?"}, {"role": "assistant", "content": "A turn."}]
    )
    got = supervised(make_tokenizer("chatml"), labels("chatml", conversation))
    assert got == "A turn.<|im_end|>"


def test_stop_token_inside_an_answer_does_not_cut_it(labels, make_tokenizer, supervised):
    conversation = Conversation(messages(["say <|im_end|> now"], system=False))
    assert supervised(make_tokenizer("chatml"), labels("chatml", conversation)) == "say <|im_end|> now<|im_end|>"


def test_stop_tokens_in_a_row_are_all_trained(labels, make_tokenizer, supervised):
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|><|endoftext|>\n{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    row = labels("phi3", Conversation(messages(["7", "8"], system=False)), chat_template=source)
    assert supervised(make_tokenizer("phi3"), row) == "7<|end|><|endoftext|>8<|end|><|endoftext|>"


def test_words_that_the_template_puts_for_an_empty_answer_are_refused(make_tokenizer):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '(none)' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate(make_tokenizer("chatml"), chat_template=source)
    assert len(template.render(Conversation(messages(["seven"], system=False))).spans) == 1
    with pytest.raises(BadRow, match="hides or rewrites"):
        template.render(Conversation(messages([""], system=False)))


def test_last_turn_all_and_per_message_flags(labels, make_tokenizer, supervised):
    tokenizer = make_tokenizer("chatml")
    turns = messages(["7", "8", "9"], system=False)
    assert supervised(tokenizer, labels("chatml", Conversation(turns), mask="last_turn")) == "9<|im_end|>"
    everything = labels("chatml", Conversation(turns), mask="all")
    assert everything["labels"] == everything["input_ids"]
    flags = [None, None, None, False, None, True]
    flagged = labels("chatml", Conversation(turns, train=flags))
    assert supervised(tokenizer, flagged) == "7<|im_end|>9<|im_end|>"
    flagged = labels("chatml_marked", Conversation(turns, train=flags))
    assert supervised(make_tokenizer("chatml_marked"), flagged) == "7<|im_end|>9<|im_end|>"


def test_marks_that_leave_the_stop_token_out_are_stretched_over_it(labels, make_tokenizer, supervised):
    source = make_tokenizer("chatml_marked").chat_template.replace(
        "message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}",
        "message['content'] -}}{%- endgeneration -%}{{- '<|im_end|>\\n' -}}",
    )
    assert "'<|im_end|>\\n'" in source
    row = labels("chatml_marked", Conversation(messages(["7", "8"], system=False)), chat_template=source)
    assert supervised(make_tokenizer("chatml_marked"), row) == "7<|im_end|>8<|im_end|>"


def test_marks_around_more_than_the_stop_token_are_cut_after_it(labels, make_tokenizer, supervised):
    source = make_tokenizer("chatml_marked").chat_template.replace(
        "'<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}", "'<|im_end|>\\n' -}}{%- endgeneration -%}"
    )
    assert "'<|im_end|>\\n' -}}{%- endgeneration" in source
    row = labels("chatml_marked", Conversation(messages(["7", "8"], system=False)), chat_template=source)
    assert supervised(make_tokenizer("chatml_marked"), row) == "7<|im_end|>8<|im_end|>"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "without a stop token"),
        ("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}", "hides or rewrites"),
        ("{% for m in messages %}{{ m.content | length }}:{{ m.content }}<|im_end|>{% endfor %}", "hides or rewrites"),
        ("{{ raise_exception('no such role') }}", "the chat template raises: no such role"),
        ("{{ messages[9].content.nope() }}", "the chat template raises"),
    ],
    ids=["no stop", "hidden", "changed by a marker", "raises", "undefined"],
)
def test_a_template_that_cannot_be_masked_says_why(source, why, make_tokenizer):
    template = ChatTemplate(make_tokenizer("chatml"), chat_template=source)
    with pytest.raises(BadRow, match=why):
        template.render(Conversation(messages(["seven", "eight"], system=False)))


def test_no_template_says_what_to_do(make_tokenizer):
    with pytest.raises(DataError, match=r"no chat template.*Set `chat_template`"):
        ChatTemplate(make_tokenizer())


def test_a_conversation_without_an_answer_is_a_bad_row(make_tokenizer):
    with pytest.raises(BadRow, match="no assistant turn"):
        ChatTemplate(make_tokenizer("chatml")).render(Conversation([{"role": "user", "content": "hi"}]))
