"""The tiny models of ``tests/tiny_vlm.py``, each built once, and rows for them."""

from typing import Any

import pytest

from tiny_vlm import build_model, build_processor


@pytest.fixture(scope="session")
def families() -> Any:
    """``families(name) -> (processor, model)``, each built once."""
    built: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in built:
            try:
                processor = build_processor(family)
            except ImportError as error:  # transformers 5.17: the PIL processors of Idefics3 and SmolVLM ask for it
                if "Torchvision" not in str(error):
                    raise
                pytest.skip(f"the image processor of {family} needs torchvision in this version of transformers")
            built[family] = (processor, build_model(family, processor.tokenizer))
        return built[family]

    return get


@pytest.fixture(scope="session")
def pictures() -> list[Any]:
    """Three images of different shapes with content."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in ((40, 40), (70, 40), (30, 60))]


@pytest.fixture(scope="session")
def rows(pictures: list[Any]) -> list[dict[str, Any]]:
    """Rows with one image each, and one without."""
    image = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": p}, {"type": "text", "text": f"what {i}?"}]},
                {"role": "assistant", "content": "a" * (i + 2)},
            ]
        }
        for i, p in enumerate(pictures)
    ]
    text = {"messages": [{"role": "user", "content": "say hi"}, {"role": "assistant", "content": "hi there"}]}
    return [*image, text]
