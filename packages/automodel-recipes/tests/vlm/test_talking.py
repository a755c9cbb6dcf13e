"""`generate` and `chat` on a vision-language model, and what a finished run proposes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from automodel_data.sources import open_source
from automodel_data.vlm.conversations import Conversations
from automodel_data.vlm.rows import VLMDataset
from automodel_recipes.cli import main
from automodel_recipes.screen import next_commands
from automodel_recipes.vlm.answers import generate_vlm_answers


@pytest.fixture(scope="module")
def model_of(families: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``model_of(family)`` is the directory of a tiny model with its processor."""

    @cache
    def write(family: str) -> str:
        processor, model = families(family)
        path = tmp_path_factory.mktemp(family)
        model.save_pretrained(path)
        processor.save_pretrained(path)
        return str(path)

    return write


@pytest.fixture
def model_dir(model_of: Any) -> str:
    return model_of("llava")


@pytest.mark.parametrize("family", ["llava", "gemma3", "idefics3", "phi4_mm", "qwen2_5_vl"])
def test_generate_answers_what_the_model_answers(
    family: str, model_of: Any, families: Any, pictures: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line's answer is that of the generator that a run measures itself with."""
    processor, model = families(family)
    pictures[1].save(tmp_path / "a.png")
    asked = {"role": "user", "content": [{"type": "image", "image": pictures[1]}, {"type": "text", "text": "what?"}]}
    row = {"messages": [asked, {"role": "assistant", "content": "x"}]}
    dataset = VLMDataset(Conversations(open_source([row]), dict, limit=None), processor)
    keys = {"adapter": dataset.adapter, "device": torch.device("cpu"), "max_new_tokens": 5}
    (expected,) = generate_vlm_answers(model, processor.tokenizer, [dataset[0]], **keys)
    command = ["generate", model_of(family), "--image", str(tmp_path / "a.png"), "--prompt", "what?", "--json"]
    assert main([*command, "--max-new-tokens", "5", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == expected.generated


@pytest.mark.parametrize("with_image", [True, False])
def test_generate_answers_with_and_without_a_picture(
    with_image: bool, model_dir: str, pictures: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures[0].save(tmp_path / "a.png")
    image = ["--image", str(tmp_path / "a.png")] if with_image else []
    code = main(["generate", model_dir, *image, "--prompt", "what?", "--max-new-tokens", "3", "--device", "cpu"])
    assert code == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert "error" not in captured.err


def test_next_commands_of_a_run_with_a_processor() -> None:
    text = next_commands(Path("run"), is_adapter=False)
    seeing = next_commands(Path("run"), is_adapter=True, takes_images=True)
    assert not any("--image" in command for command in text)
    assert "chat run --image PICTURE" in seeing[0]
    assert "generate run --image PICTURE" in seeing[1]
    assert "ckpt merge" in seeing[-1]
