"""A loaded model as a partner in a conversation: text or text with images, answered piece by piece."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import torch

from automodel_recipes.errors import RecipeError
from automodel_recipes.places import Place, find_place


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    text: str
    images: tuple[str, ...] = ()
    """Paths of local images that stand before the text."""


class Speaker(Protocol):
    """What `open_speaker` returns."""

    takes_images: bool

    def answer(self, turns: Sequence[Turn], *, max_new_tokens: int = 256, temperature: float = 0.0) -> Iterator[str]:
        """The answer to a conversation whose last turn is the user's, in pieces; temperature 0 is greedy."""


def open_speaker(
    path: str, *, base_model: str | None = None, device: str = "auto", images: bool | None = None
) -> Speaker:
    """Load a run, checkpoint, adapter, model directory or hub id as a partner.

    Args:
        images: whether images will be asked about, for a model that transformers knows both with and without them.
            None: they may be; an adapter of such a model was then trained on what its own recipe says.

    Raises: RecipeError: nothing usable there.
    """
    from automodel_parallel.init import resolve_device
    from automodel_recipes.vlm.inference import is_multimodal, needs_processor

    place = find_place(path)
    where = str(resolve_device(device))
    if images is None:
        images = place.kind != "adapter"
    if needs_processor(place) or (images and is_multimodal(place)):
        return VisionSpeaker.load(place, base_model=base_model, device=where)
    return TextSpeaker.load(place, base_model=base_model, device=where)


class TextSpeaker:
    """A language model with its tokenizer's chat template; without one the last message alone is continued."""

    takes_images = False

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, place: Place, *, base_model: str | None, device: str) -> "TextSpeaker":
        """From anything that a path may name."""
        from automodel_recipes.inference import load_for_inference

        return cls(*load_for_inference(place, base_model=base_model, device=device))

    def answer(self, turns: Sequence[Turn], *, max_new_tokens: int = 256, temperature: float = 0.0) -> Iterator[str]:
        """As `Speaker.answer`. Raises: RecipeError: a turn has images."""
        from automodel_recipes.inference import encode_conversation, stop_token_ids

        if any(turn.images for turn in turns):
            raise RecipeError("this model takes text alone. Leave the images out, or name a vision-language model.")
        ids = encode_conversation(self.tokenizer, [{"role": t.role, "content": t.text} for t in turns])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield from stream(
            self.model,
            self.tokenizer,
            inputs,
            stop_ids=stop_token_ids(self.tokenizer),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )


class VisionSpeaker:
    """A vision-language model with its processor; images are read under the media limits of training."""

    takes_images = True

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, place: Place, *, base_model: str | None, device: str) -> "VisionSpeaker":
        """From anything that a path may name."""
        from automodel_recipes.vlm.inference import load_vlm

        return cls(*load_vlm(place, base_model=base_model, device=device))

    def answer(self, turns: Sequence[Turn], *, max_new_tokens: int = 256, temperature: float = 0.0) -> Iterator[str]:
        """As `Speaker.answer`. Raises: BadRow: an image that cannot be read or is above the limits."""
        from automodel_recipes.vlm.inference import encode_turns

        inputs, stop_ids = encode_turns(self.processor, turns)
        yield from stream(
            self.model,
            self.processor.tokenizer,
            inputs,
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )


def stream(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
) -> Iterator[str]:
    """Text as ``model.generate`` makes it, in a thread of its own.

    Raises: whatever generation raised, after the pieces before it.
    """
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    failures: list[BaseException] = []

    def run() -> None:
        try:
            model.generate(
                **{key: value.to(model.device) for key, value in inputs.items()},
                max_new_tokens=max_new_tokens,
                eos_token_id=list(stop_ids) or None,
                pad_token_id=min(stop_ids, default=0),
                streamer=streamer,
                **sampling,
            )
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that asked
            failures.append(error)
            streamer.end()  # or the reader would wait for ever

    thread = Thread(target=run, name="generate", daemon=True)
    thread.start()
    yield from (piece for piece in streamer if piece)
    thread.join()
    if failures:
        raise failures[0]


def image_paths(words: str) -> tuple[str, ...]:
    """Paths of an ``/image`` line of a chat, quoted where they hold spaces.

    Raises: RecipeError: one that is no file.
    """
    import shlex

    paths = tuple(shlex.split(words))
    absent = [path for path in paths if not Path(path).is_file()]
    if absent or not paths:
        raise RecipeError(f"/image {words}: " + (f"no such file: {absent[0]}" if absent else "name a file") + ".")
    return paths
