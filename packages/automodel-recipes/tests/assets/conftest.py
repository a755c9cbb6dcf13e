"""The demo's assets, and the scripts that made them."""

import importlib
import json
import sys
from pathlib import Path

import pytest

import automodel_recipes

SCRIPTS = Path(__file__).resolve().parents[4] / "scripts"


@pytest.fixture(scope="session")
def assets():
    """The directory that ships in the wheel."""
    return Path(automodel_recipes.__file__).parent / "assets"


@pytest.fixture(scope="session")
def orders(assets):
    """Shipped orders: ``{"train": rows, "heldout": rows}``."""
    files = {name: assets / "orders" / f"{name}.jsonl" for name in ("train", "heldout")}
    return {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in files.items()}


@pytest.fixture(scope="session")
def script():
    """Imports a module of ``scripts/`` by name; skips where only the wheel is there."""
    if not (SCRIPTS / "make_tiny_assets.py").is_file():
        pytest.skip("scripts/make_tiny_assets.py is not here: the generators ship with the repository, not the wheel")
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def tokenizer(assets):
    """The tiny model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets / "tiny_llama")
