"""The demo learns: answers that were never right become right, and only because the labels are."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.more


@pytest.fixture
def demo():
    return yaml.safe_load((ROOT / "examples/llm/demo_lora.yaml").read_text())


def exact_matches(run):
    """Exact-match rates of the held-out orders, before training and after it."""
    rates = [row["exact_match"] for row in run.rows if "exact_match" in row]
    return rates[0], rates[-1]


def shuffled_orders(path):
    """The training orders with the answers of other orders."""
    from automodel_recipes.shipped import ROOT as shipped

    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        orders = importlib.import_module("tiny.orders")
    finally:
        sys.path.pop(0)
    lines = (shipped.parent / "assets/orders/train.jsonl").read_text().splitlines()
    rows = orders.shuffle_answers([json.loads(line) for line in lines], seed=1)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lora_learns_the_orders_and_peft_loads_the_adapter(cli, demo):
    run = cli(demo, "demo")
    before, after = exact_matches(run)
    assert before <= 0.02
    assert after >= 0.8
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert run.stdout.count("sample ") == 1 + 3  # a row at the start, answers at the end
    assert {path.name for path in (run.path / "final").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_shuffled_labels_teach_no_orders(cli, demo, tmp_path):
    demo["dataset"]["path_or_dataset_id"] = str(shuffled_orders(tmp_path / "shuffled.jsonl"))
    _, after = exact_matches(cli(demo, "shuffled"))
    assert after < 0.2
