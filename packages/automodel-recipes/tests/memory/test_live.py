import pytest
import torch

from automodel_recipes.memory.ghost import ghost_tensors
from automodel_recipes.memory.live import LiveTensors

MIB = 2**20


def use(live):
    """Peak 3 MiB: two tensors and a temporary, one of which is freed before the last one is made."""
    with live:
        a = torch.zeros(MIB // 4)
        b = a + 1
        del a
        c = b * 2
        d = c[:10]  # a view takes nothing
        del b
        e = torch.zeros(MIB // 2)
        return c, d, e


@pytest.mark.parametrize("ghost", [False, True])
def test_peak_is_what_was_alive_at_once(ghost):
    live = LiveTensors()
    if ghost:
        with ghost_tensors():
            kept = use(live)
            assert live.peak().total == 3 * MIB
    else:
        kept = use(live)
        assert live.peak().total == 3 * MIB
    assert len(kept) == 3


def test_categories_and_scale():
    live = LiveTensors()
    weight = torch.zeros(MIB)
    with live:
        live.hold("parameters", [weight])
        kept = torch.zeros(MIB // 4)
        live.scope = "logits and loss"
        head = torch.zeros(MIB // 4)
    assert dict(live.peak().parts) == {"parameters": 4 * MIB, "activations": MIB, "logits and loss": MIB}
    assert live.peak(scale=3).total == 10 * MIB
    assert live.peak(lasting={"parameters": MIB, "optimizer": 2 * MIB}).total == 5 * MIB
    assert live.held("parameters") == 4 * MIB
    assert kept.numel() == head.numel()


def test_storage_that_is_resized_between_operators_is_noticed():
    live = LiveTensors()
    with live:
        gathered = torch.zeros(MIB)
        live._mark_communicated([gathered])
        gathered.untyped_storage().resize_(0)
        other = torch.zeros(MIB)
    assert live.peak().total == 4 * MIB
    assert other.numel() == MIB


def test_ghosts_have_shapes_and_no_memory_and_ids_are_real():
    with ghost_tensors():
        weight = torch.nn.Parameter(torch.empty(1 << 20, 1 << 20, dtype=torch.bfloat16))
        ids = torch.tensor([[1, 2], [3, 4]])
        assert weight.untyped_storage().nbytes() == 1 << 41
        assert int(ids.sum()) == 10
        picked = torch.nn.functional.embedding(ids, weight)
        mask = ids > 2
        assert picked[mask].shape == (2, 1 << 20)


def test_checks_of_values_pass_on_ghosts():
    with ghost_tensors():
        pixels = torch.rand(2, 3)
        assert torch.allclose(pixels, pixels + 1)
        assert float((pixels - 1).norm()) == 0.0
        # A picture is not taken for padding.
        padding = (pixels == 0.0).sum(-1) == 3
        assert padding.tolist() == [False, False]


def test_random_state_stays():
    before = torch.get_rng_state()
    with ghost_tensors():
        torch.randn(8)
        torch.randperm(8)
    assert torch.equal(before, torch.get_rng_state())
