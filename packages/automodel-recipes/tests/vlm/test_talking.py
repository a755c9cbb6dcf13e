"""`generate` and `chat` on a vision-language model, and what a finished run proposes."""

from pathlib import Path
from typing import Any

import pytest

from automodel_recipes.cli import main
from automodel_recipes.screen import next_commands


@pytest.fixture(scope="module")
def model_dir(families: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    processor, model = families("llava")
    path = tmp_path_factory.mktemp("llava")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


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


def test_chat_says_what_to_do_instead(model_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", model_dir]) == 2
    assert "generate" in capsys.readouterr().err


def test_next_commands_of_a_run_with_a_processor() -> None:
    text = next_commands(Path("run"), is_adapter=False)
    seeing = next_commands(Path("run"), is_adapter=True, takes_images=True)
    assert not any("--image" in command for command in text)
    assert "--image PICTURE" in seeing[0]
    assert not any(" chat " in command for command in seeing)
    assert "ckpt merge" in seeing[-1]
