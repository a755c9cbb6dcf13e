"""Tiny models that several test files share."""

import copy
import sys
from pathlib import Path

import pytest
import torch

# Test modules are imported one by one, without packages: `core_families` is found here.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def _llama():
    from core_families import build

    return build("llama")


@pytest.fixture
def llama(_llama):
    """A fresh tiny Llama with the same weights for every test."""
    return copy.deepcopy(_llama)


@pytest.fixture
def batch():
    """Three ragged rows with unshifted labels, 14 of them supervised after the shift."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (3, 12), generator=rng)
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row, (start, end) in enumerate([(6, 12), (3, 9), (8, 10)]):
        labels[row, :start] = -100
        labels[row, end:] = -100
        mask[row, end:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
