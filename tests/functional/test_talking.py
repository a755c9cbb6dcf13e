"""`chat` and `generate`: streamed pieces are the greedy answer, earlier turns count, images count, failures end."""

import json

import pytest
import torch

from automodel_recipes.cli import main
from automodel_recipes.talking import TextSpeaker, Turn, open_speaker, stream
from tiny_vlm import build_model, build_processor


@pytest.fixture(scope="module")
def speaker(tiny_model):
    return open_speaker(str(tiny_model), device="cpu")


@torch.no_grad()
def greedy(model, ids, steps):
    """Token by token, without a cache."""
    ids = list(ids)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def test_pieces_come_one_by_one_and_are_the_greedy_answer(speaker):
    pieces = list(speaker.answer([Turn("user", "count abc")], max_new_tokens=6))
    text = speaker.tokenizer.apply_chat_template(
        [{"role": "user", "content": "count abc"}], tokenize=False, add_generation_prompt=True
    )
    ids = speaker.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = greedy(speaker.model, ids, 6)[len(ids) :]
    if 2 in expected:
        expected = expected[: expected.index(2)]
    assert "".join(pieces) == speaker.tokenizer.decode(expected, skip_special_tokens=True)
    assert len(pieces) > 1


def test_earlier_turns_are_part_of_the_question(tiny_model, monkeypatch, capsys):
    asked = []
    plain = TextSpeaker.answer

    def listen(self, turns, **keys):
        asked.append([(turn.role, turn.text) for turn in turns])
        yield from plain(self, turns, **keys)

    monkeypatch.setattr(TextSpeaker, "answer", listen)
    lines = iter(["count a", "and b", "/new", "count c", ""])
    monkeypatch.setattr("automodel_recipes.cli.generate.click.prompt", lambda *_, **__: next(lines))
    assert main(["chat", str(tiny_model), "--system", "short", "--max-new-tokens", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    first = ("user", "count a")
    assert asked[0] == [("system", "short"), first]
    assert asked[1] == [("system", "short"), first, ("assistant", said[0]), ("user", "and b")]
    assert asked[2] == [("system", "short"), ("user", "count c")]


def test_what_fails_in_generation_ends_the_stream_and_is_raised(speaker):
    class Broken:
        device = torch.device("cpu")

        def generate(self, streamer, **_):
            streamer.put(torch.tensor([[5]]))
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(stream(Broken(), speaker.tokenizer, {}, stop_ids=[2], max_new_tokens=1, temperature=0.0))


def test_text_models_say_that_they_take_no_images(tiny_model, capsys):
    words = ["--prompt", "x", "--image", __file__, "--device", "cpu", "--json"]
    assert main(["generate", str(tiny_model), *words]) == 1
    assert "takes text alone" in json.loads(capsys.readouterr().out)["problems"][0]["message"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    processor = build_processor("llava")
    path = tmp_path_factory.mktemp("llava")
    build_model("llava", processor.tokenizer).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("my pictures")
    paths = []
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        paths.append(str(folder / f"{name}.png"))
        Image.new("RGB", (40, 40), color).save(paths[-1])
    return paths


def test_images_of_every_turn_reach_the_model_in_order(vlm, pictures):
    seeing = open_speaker(str(vlm), device="cpu")
    seen = []
    plain = seeing.model.generate
    seeing.model.generate = lambda **keys: seen.append(keys) or plain(**keys)
    red, blue = pictures
    turns = [Turn("user", "what?", (red,)), Turn("assistant", "a wall"), Turn("user", "and this?", (blue,))]
    pieces = list(seeing.answer(turns, max_new_tokens=4))
    (keys,) = seen
    assert keys["pixel_values"].shape[0] == 2
    first, second = keys["pixel_values"].mean((-1, -2))
    assert first.argmax() == 0
    assert second.argmax() == 2
    image = seeing.processor.tokenizer.convert_tokens_to_ids("<image>")
    assert int((keys["input_ids"] == image).sum()) % 2 == 0
    expected = plain(**{k: v for k, v in keys.items() if k != "streamer"})[0, keys["input_ids"].shape[1] :]
    assert "".join(pieces) == seeing.processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_chat_takes_pictures_by_their_path(vlm, pictures, monkeypatch, capsys):
    lines = iter([f"/image '{pictures[0]}'", "/image nowhere.png", "what is this?", "again?", ""])
    monkeypatch.setattr("automodel_recipes.cli.generate.click.prompt", lambda *_, **__: next(lines))
    assert main(["chat", str(vlm), "--max-new-tokens", "3", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert "no such file: nowhere.png" in shown.err
