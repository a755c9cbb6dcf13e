"""The command as a user runs it: what it prints, and how it exits."""

from __future__ import annotations

import json

import pytest

from automodel_data import ChatDataset
from automodel_data.cli import main
from automodel_data.inspect import format_rows, problems, summarise


def chat(answer: str, question: str = "What is 12 times 7?") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def tokenizer_dir(tmp_path, make_tokenizer):
    make_tokenizer("chatml").save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def write(path, rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_show_marks_what_is_trained(tmp_path, tokenizer_dir, capsys):
    data = write(tmp_path / "a.jsonl", [chat("84"), chat("It is \x1b[31m84.")])
    assert main(["show", data, "--tokenizer", tokenizer_dir, "--rows", "5"]) == 0
    out = capsys.readouterr().out
    assert "<|im_start|>assistant\n\u00ab84<|im_end|>\u00bb" in out
    assert "row 1:" in out
    assert "\x1b" not in out


def test_colours(tokenizer):
    text = format_rows(ChatDataset([chat("84")], tokenizer), tokenizer, color=True)
    assert "\x1b[32m84<|im_end|>\x1b[0m" in text


def test_check_of_clean_data(tmp_path, tokenizer_dir, capsys):
    data = write(tmp_path / "a.jsonl", [chat(str(i)) for i in range(20)])
    assert main(["check", data, "--tokenizer", tokenizer_dir, "--strict", "--pack-size", "64"]) == 0
    out = capsys.readouterr().out
    assert "stop token  ends 100.0% of rows" in out
    assert "full at 64 tokens" in out
    assert "no problem found" in out


def test_check_lists_bad_rows_and_strict_exits_with_4(tmp_path, tokenizer_dir, capsys):
    data = write(tmp_path / "a.jsonl", [*(chat(str(i)) for i in range(5)), "{broken", chat("1"), chat("1")])
    report = tmp_path / "bad.jsonl"
    assert main(["check", data, "--tokenizer", tokenizer_dir, "--bad-rows", str(report)]) == 0
    out = capsys.readouterr().out
    assert f"{data}:6: broken JSON" in out
    assert "2 rows repeat an earlier row" in out
    assert json.loads(report.read_text())["line"] == 6
    assert main(["check", data, "--tokenizer", tokenizer_dir, "--strict", "--json"]) == 4
    figures = json.loads(capsys.readouterr().out)
    assert figures["num_bad"] == 1
    assert any("cannot be used" in text for text in figures["problems"])


def test_chats_in_a_column_of_another_name(tmp_path, tokenizer_dir, capsys):
    data = write(tmp_path / "a.jsonl", [{"dialog": chat("84")["messages"]}])
    assert main(["show", data, "--tokenizer", tokenizer_dir, "--columns", "messages=dialog"]) == 0
    assert "\u00ab84<|im_end|>\u00bb" in capsys.readouterr().out


def test_check_of_columns_text_and_another_template(tmp_path, tokenizer_dir, capsys):
    data = write(tmp_path / "a.jsonl", [{"q": "a?", "a": str(i), "text": "some words " * 9} for i in range(9)])
    assert main(["check", data, "--tokenizer", tokenizer_dir, "--columns", "question=q,answer=a", "--strict"]) == 0
    assert main(["check", data, "--tokenizer", tokenizer_dir, "--text-column", "text", "--seq-length", "32"]) == 0
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}")
    chats = write(tmp_path / "c.jsonl", [chat("84")])
    capsys.readouterr()
    assert main(["show", chats, "--tokenizer", tokenizer_dir, "--chat-template", str(template)]) == 0
    assert "[assistant]\u00ab84<|im_end|>\u00bb" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "missing.jsonl", "--tokenizer", "TOKENIZER"], "nothing is found at missing.jsonl"),
        (["show", "DATA", "--tokenizer", "no/such/dir"], "no tokenizer is found at 'no/such/dir'"),
        (["show", "DATA", "--tokenizer", "TOKENIZER", "--mask", "x"], "mask='x' is not known"),
        (
            ["check", "DATA", "--tokenizer", "TOKENIZER", "--columns", "question=q,answer=b"],
            "missing column 'q'. The row has: messages",
        ),
        (["check", "DATA", "--tokenizer", "TOKENIZER", "--columns", "q"], "column_mapping has the keys"),
        (["check", "DATA", "--tokenizer", "TOKENIZER", "--chat-template", "x.jinja"], "x.jinja is not a file"),
        (["cache", "rm", "nope"], "no entry 'nope'"),
    ],
)
def test_mistakes_exit_with_4_and_one_line(arguments, message, tmp_path, tokenizer_dir, capsys):
    data = write(tmp_path / "a.jsonl", [chat("84")])
    arguments = [{"DATA": data, "TOKENIZER": tokenizer_dir}.get(a, a) for a in arguments]
    assert main(arguments) == 4
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_cache_commands(tmp_path, tokenizer_dir, capsys):
    assert main(["cache", "ls"]) == 0
    assert "nothing in" in capsys.readouterr().out
    data = write(tmp_path / "a.jsonl", [chat("84")])
    main(["show", data, "--tokenizer", tokenizer_dir])
    capsys.readouterr()
    main(["cache", "ls"])
    key = capsys.readouterr().out.split()[0]
    assert main(["cache", "rm", key[:12]]) == 0
    assert capsys.readouterr().out == "removed 1\n"


def test_the_checks_see_what_they_are_for(tokenizer):
    class Rows(list):
        pass

    bos, stop = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    good = {"input_ids": [bos, 30, stop], "labels": [-100, 30, stop]}
    assert problems(summarise(Rows([good]), tokenizer)) == []
    cases = {
        "train nothing": {"input_ids": [bos, 30, stop], "labels": [-100] * 3},
        "stop token": {"input_ids": [bos, 30, stop], "labels": [-100, 30, -100]},
        "two BOS": {"input_ids": [bos, bos, stop], "labels": [-100, -100, stop]},
    }
    for expected, row in cases.items():
        assert any(expected in text for text in problems(summarise(Rows([good, row]), tokenizer))), expected
    assert any("repeat" in text for text in problems(summarise(Rows([good, good]), tokenizer)))
