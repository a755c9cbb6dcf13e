import pytest

from automodel_recipes.errors import UnusableInputError
from automodel_recipes.gpus import Gpu, find_gpu, recognise_gpu
from automodel_recipes.memory.live import GATHERED
from automodel_recipes.plan.estimate import fits_on, usable_bytes
from automodel_recipes.plan.make import make_plan

PARAMETERS = 512 * 64 * 2 + 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64


def test_static_memory_of_one_rank_is_exact(plan_config):
    plan = make_plan(plan_config(), world_size=1)
    static = plan.estimate.static
    assert plan.problems == []
    assert plan.estimate.trace.num_parameters == PARAMETERS
    assert static["parameters"] == static["gradients"] == 4 * PARAMETERS
    steps = 4 * len(plan.estimate.trace.shapes)  # AdamW counts steps per parameter
    assert static["optimizer"] == 8 * PARAMETERS + steps
    assert plan.estimate.traffic == []


def test_sharding_divides_what_stays_and_says_what_is_sent(plan_config):
    plan = make_plan(plan_config(distributed={"strategy": "fsdp2"}), world_size=4)
    static = plan.estimate.static
    assert plan.layout == "dp_shard 4"
    assert static["parameters"] == PARAMETERS  # a quarter of 4 bytes
    assert plan.estimate.peak().parts[GATHERED] > 0
    assert plan.estimate.trace.shapes["model.layers.0.mlp.up_proj.weight"] == ((128, 64), (32, 64))
    gathers = [row for row in plan.estimate.traffic if row.op.startswith("allgather")]
    scatters = [row for row in plan.estimate.traffic if row.op.startswith("reduce_scatter")]
    # Blocks are gathered forward and backward, the root once; gradients are reduced once. Rings send 3 of 4 parts.
    root, blocks = 512 * 64 * 2 + 64, PARAMETERS - 512 * 64 * 2 - 64
    assert sum(row.sent_bytes for row in gathers) == pytest.approx(3 / 4 * 4 * (2 * blocks + root), rel=1e-3)
    assert sum(row.sent_bytes for row in scatters) == pytest.approx(3 / 4 * 4 * PARAMETERS, rel=1e-3)
    assert {row.axis for row in gathers} == {"dp_shard"}


def test_ddp_keeps_gradients_all_the_time_and_sums_them(plan_config):
    alone = make_plan(plan_config(), world_size=1).estimate
    plan = make_plan(plan_config(distributed={"strategy": "ddp"}), world_size=2).estimate
    assert plan.static == alone.static
    assert plan.peak().parts["gradients"] == 4 * PARAMETERS
    (row,) = [row for row in plan.traffic if "gradient" in row.op]
    assert row.sent_bytes == 4 * PARAMETERS


def test_tensor_ranks_hold_their_part_of_a_layer(plan_config):
    plan = make_plan(plan_config(distributed={"strategy": "fsdp2", "tp_size": 2}), world_size=2)
    assert plan.layout == "tp 2"
    assert plan.estimate.trace.shapes["model.layers.0.mlp.up_proj.weight"] == ((128, 64), (64, 64))
    assert any(row.axis == "tp" for row in plan.estimate.traffic)


def test_pipeline_stages_are_planned_by_their_larger_one(plan_config):
    plan = make_plan(plan_config(distributed={"strategy": "fsdp2", "pp_size": 2}), world_size=2)
    assert plan.problems == []
    assert plan.layout == "pp 2"
    assert 0.4 < plan.estimate.static["parameters"] / (4 * PARAMETERS) < 0.7


def test_checkpointing_keeps_fewer_activations(plan_config):
    kept = make_plan(plan_config(distributed={"strategy": "fsdp2"}), world_size=1).estimate
    freed = make_plan(
        plan_config(distributed={"strategy": "fsdp2", "activation_checkpointing": True}), world_size=1
    ).estimate
    assert freed.peak().parts["activations"] < 0.5 * kept.peak().parts["activations"]


def test_a_base_in_4_bits_is_planned_at_its_size(plan_config):
    lora = {"peft": {"_target_": "lora", "dim": 4, "target_modules": ["*_proj"]}}
    whole = make_plan(plan_config(**lora), world_size=1).estimate
    packed = make_plan(plan_config(**lora, quantization={"load_in_4bit": True}), world_size=1).estimate
    linear = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    # Half a byte each and a float32 scale for 64 of them, instead of 4 bytes; embedding, head and norms stay.
    saved = linear * (4 - 0.5 - 4 / 64)
    assert whole.static["parameters"] - packed.static["parameters"] == saved
    assert whole.peak().total - packed.peak().total == pytest.approx(saved, rel=1e-6)
    assert packed.static["optimizer"] == whole.static["optimizer"]


def test_a_vision_language_recipe_is_planned_with_an_image_a_row():
    from automodel_core.config import load_config
    from automodel_recipes.shipped import find_shipped

    config = load_config(find_shipped("demo_receipts").path, ["step_scheduler.global_batch_size=4"])
    small = load_config(find_shipped("demo_receipts").path, ["step_scheduler.local_batch_size=4"])
    plan = make_plan(small, world_size=1)
    assert plan.problems == []
    assert plan.estimate.rows == 4
    assert plan.estimate.static["gradients"] > 0.9 * plan.estimate.static["parameters"]
    assert any("multiple" in row for row in make_plan(config, world_size=1).problems)


def test_a_larger_micro_batch_is_foreseen(plan_config):
    sections = {"step_scheduler": {"global_batch_size": 64, "local_batch_size": 8}}
    foreseen = make_plan(plan_config(), world_size=1).estimate.peak(8)
    traced = make_plan(plan_config(**sections), world_size=1).estimate.peak()
    assert foreseen.total == pytest.approx(traced.total, rel=0.05)


def test_the_largest_micro_batch_that_fits(plan_config):
    estimate = make_plan(plan_config(), world_size=1).estimate
    limit = estimate.peak(11).total
    assert estimate.largest_micro_batch(limit) == 11
    assert estimate.largest_micro_batch(estimate.peak(1).total - 1) == 0


@pytest.mark.parametrize(
    ("sections", "world_size", "problem"),
    [
        ({"distributed": {"strategy": "fsdp2", "tp_size": 4}}, 6, "the product must equal it"),
        ({"distributed": {"strategy": "fsdp2", "dp_replicate_size": 4}}, 6, "dp_replicate_size=4 with dp_size=6"),
        ({"step_scheduler": {"global_batch_size": 6, "local_batch_size": 4}}, 1, "must be a multiple of 4"),
        ({"distributed": {"strategy": "none"}}, 2, "strategy none with 2 processes"),
    ],
)
def test_what_does_not_divide_is_a_row(plan_config, sections, world_size, problem):
    assert any(problem in row for row in make_plan(plan_config(**sections), world_size=world_size).problems)


def test_rows_of_unknown_length_are_asked_for(plan_config):
    sections = {"dataset": {"_target_": "chat", "path_or_dataset_id": "somewhere/else"}}
    with pytest.raises(UnusableInputError, match="--seq-length"):
        make_plan(plan_config(**sections), world_size=1)
    assert make_plan(plan_config(**sections), world_size=1, seq_length=16).estimate.tokens == 16


def test_gpus_by_name():
    assert find_gpu("H200").memory_gib > 130
    assert find_gpu("A100_80").name == "a100-80"
    with pytest.raises(ValueError, match=r"no GPU 'h300' is known: choose one of .*h200"):
        find_gpu("h300")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Quadro P400", None),
    ],
)
def test_gpus_by_what_the_driver_calls_them(device, name):
    found = recognise_gpu(device)
    assert (found.name if found else None) == name


def test_a_card_is_not_filled_to_the_brim():
    card = Gpu("x", 10.0, 1.0, ("X",))
    assert usable_bytes(card) == pytest.approx(0.95 * 9 * 2**30)


def test_fits_on_lists_the_smallest_card_first(plan_config):
    cards = fits_on(make_plan(plan_config(), world_size=1).estimate.peak())
    assert [card.memory_gib for card in cards] == sorted(card.memory_gib for card in cards)
