"""Layouts that cannot be, told from the configuration and the model's config.json alone."""

import json
from pathlib import Path

import pytest

from automodel_core.config import config_from_dict
from automodel_recipes.validation.report import Report
from automodel_recipes.validation.rules import check_rules

FACTS = {
    "model_type": "mixtral",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "num_local_experts": 6,
}


@pytest.fixture
def problems(tmp_path: Path):
    """``problems(distributed, nproc, recipe=...)`` -> messages."""
    (tmp_path / "config.json").write_text(json.dumps(FACTS))

    def check(distributed, nproc=1, *, allow=(), **extra):
        config = {
            "model": {"pretrained_model_name_or_path": str(tmp_path)},
            "step_scheduler": {"global_batch_size": 8, "local_batch_size": 2},
            "distributed": {"strategy": "fsdp2", **distributed},
            **extra,
        }
        node = config_from_dict(config, allow_targets=allow)
        report = Report(node.policy)
        check_rules(node, report, nproc_per_node=nproc)
        return [f"{problem.path}: {problem.message}" for problem in report.problems]

    return check


@pytest.mark.parametrize(
    ("distributed", "nproc"),
    [
        ({}, 4),
        ({"tp_size": 2, "sequence_parallel": True}, 4),
        ({"pp_size": 2, "tp_size": 2}, 4),
        ({"cp_size": 2, "dp_size": 2}, 4),
        ({"pp_size": 2, "pp_schedule": "zero_bubble", "stages_per_rank": 2}, 2),
        ({"pp_size": 2, "layers_per_stage": [1, 3]}, 2),
        ({"ep_size": 2}, 2),
        ({"tp_size": 4, "cp_size": "none"}, 1),  # how many processes there will be is not known here
    ],
)
def test_what_fits_is_no_problem(problems, distributed, nproc):
    found = problems(distributed, nproc)
    assert [p for p in found if "num_key_value_heads" not in p] == []


@pytest.mark.parametrize(
    ("distributed", "nproc", "message"),
    [
        ({"tp_size": 2, "pp_size": 2}, 6, "pp_size: tp_size 2 x pp_size 2 = 4 ranks do not divide 6 processes"),
        ({"tp_size": 2, "dp_size": 4}, 4, "dp_size: leaves 2 of 4 processes; write that, or none"),
        ({"tp_size": 4}, 4, "tp_size: 4 does not divide the model's num_key_value_heads = 2; choose one of [2], or 1"),
        ({"pp_size": 8}, 8, "pp_size: makes 8 stages of 4 layers, so that one is empty; choose at most 4"),
        ({"pp_size": 2, "layers_per_stage": [4, 0]}, 2, "layers_per_stage: [4, 0]: give 2 numbers of 1 or more"),
        ({"pp_size": 2, "stages_per_rank": 2}, 2, "stages_per_rank: stages_per_rank 2 with pp_schedule 1f1b"),
        ({"pp_size": 2, "pp_schedule": "zero_bubble"}, 2, "pp_schedule: stages_per_rank 1 with pp_schedule zero_bub"),
        ({"sequence_parallel": True}, 2, "sequence_parallel: needs tp_size of 2 or more"),
        ({"pp_size": 2, "tp_size": 2, "sequence_parallel": True}, 4, "sequence_parallel: does not go with pp_size"),
        ({"pp_size": 2, "cp_size": 2}, 4, "cp_size: does not go with pp_size"),
        ({"ep_size": 4}, 4, "ep_size: 4 does not divide the model's 6 experts"),
        ({"tp_size": 2, "tp_plan": "my.plans:plan"}, 2, "'my.plans:plan' imports code; if you trust it, allow it with"),
    ],
)
def test_what_does_not_fit_is_one_problem(problems, distributed, nproc, message):
    (problem,) = problems(distributed, nproc)
    assert problem.startswith("distributed.")
    assert message in problem


def test_batches_divide_by_the_data_ranks_alone(problems):
    assert problems({"tp_size": 2, "pp_size": 2}, 4) == []
    batch = {"step_scheduler": {"global_batch_size": 8, "local_batch_size": 3}}
    (problem,) = problems({"tp_size": 2}, 4, **batch)
    assert problem.endswith("8 is not a multiple of local_batch_size 3 x 2 data ranks; 6 is")


def test_recipes_with_a_loss_of_their_own_are_not_cut(problems):
    (problem,) = problems({"cp_size": 2}, 2, recipe="SequenceClassificationRecipe")
    assert "cp_size: does not go with SequenceClassificationRecipe" in problem


def test_a_plan_of_ones_own_can_be_allowed(problems):
    assert problems({"tp_size": 2, "tp_plan": "my.plans:plan"}, 2, allow=("my.plans",)) == []
