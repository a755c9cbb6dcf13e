"""What tensor, context and pipeline parallelism refuse, and the parts of them that need no ranks."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Phi3Config

from automodel_parallel import FSDP2Manager
from automodel_parallel.context_parallel import documents
from automodel_parallel.init import DistInfo
from automodel_parallel.pipeline import pad_to_one_shape
from automodel_parallel.pipeline_split import stage_ranges
from automodel_parallel.tp import FAMILIES, resolve_plan

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
IDS = torch.arange(24).reshape(2, 12) % 48


def build(kind: type = LlamaConfig, **extra: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**{**SIZES, **extra}), dtype=torch.float32)


def _refusals(info: DistInfo) -> list[str]:
    cases = [
        (build(num_key_value_heads=1), {"tp_size": 2}),
        (build(), {"tp_size": 2, "tp_plan": {"model.layers.*.attention": "colwise"}}),
        (build(), {"tp_size": 2, "tp_plan": {"model.layers.*.mlp.up_proj": "diagonal"}}),
        (build(), {"tp_size": 2, "sequence_parallel": True, "tp_plan": "hf"}),
        (build(), {"tp_size": 2, "tp_plan": "no.such.module:plan"}),
        (torch.nn.Linear(4, 4), {"tp_size": 2}),
        (torch.nn.Linear(4, 4), {"cp_size": 2}),
        (build(num_hidden_layers=1), {"pp_size": 2}),
        (build(), {"pp_size": 2, "layers_per_stage": [2, 0]}),
        (build(), {"pp_size": 2, "pp_schedule": "2f2b"}),
        (build(), {"pp_size": 2, "stages_per_rank": 2}),
        (build(), {"sequence_parallel": True}),
        (build(), {"ep_size": 2}),
        (build(MixtralConfig, num_local_experts=3), {"ep_size": 2}),
        (build(), {"ep_size": 2, "dp_replicate_size": 2, "cp_size": 1}),
    ]
    messages = []
    for model, settings in cases:
        try:
            FSDP2Manager(**settings).setup(info).parallelize(model)
            messages.append("accepted")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_what_does_not_fit_is_refused(ranks) -> None:
    expected = [
        "tp_size=2 with 4 attention heads and 1 key-value heads: it must divide both. Choose one of [1]",
        "plan names 'model.layers.*.attention', which matches no module of LlamaForCausalLM",
        "style 'diagonal' of 'model.layers.*.mlp.up_proj': allowed are all_reduce, colwise,",
        "sequence_parallel with the model's _tp_plan: it marks no module to 'enter'",
        "tp_plan='no.such.module:plan'",
        "no tensor-parallel plan for Linear",
        "context parallelism on Linear: it needs a transformers model",
        "2 pipeline stages for 1 layers: a stage would be empty",
        "layers_per_stage=[2, 0] for 2 stages and 2 layers",
        "pp_schedule='2f2b': it must be one of gpipe, 1f1b, interleaved1f1b",
        "stages_per_rank=2 with pp_schedule='1f1b'",
        "sequence_parallel without tensor ranks: set tp_size to 2 or more",
        "ep_size=2 on LlamaForCausalLM: it has no experts",
        "ep_size=2 with 3 experts in 'model.layers.0.mlp.experts': it must divide. Change it.",
        "ep_size=2 with 1 sharding ranks (dp_shard 1 x cp 1)",
    ]
    for messages in ranks.run(_refusals, 2):
        assert len(messages) == len(expected)
        for message, text in zip(messages, expected):
            assert text in message


def _streams(info: DistInfo) -> list[int]:
    layouts = ({"tp_size": 2}, {"cp_size": 2}, {"tp_size": 2, "pp_size": 2}, {"dp_replicate_size": 2})
    return [FSDP2Manager(**layout).setup(info).random_stream for layout in layouts]


def test_ranks_with_the_same_tokens_drop_the_same(ranks) -> None:
    by_rank = ranks.run(_streams, 4)
    assert [list(streams) for streams in zip(*by_rank)] == [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 2, 3]]


def _hf_plan_logits(info: DistInfo, kind: type, loss_parallel: bool) -> torch.Tensor:
    model, _ = (
        FSDP2Manager(tp_size=2, tp_plan="hf" if not loss_parallel else None, loss_parallel=loss_parallel)
        .setup(info)
        .parallelize(build(kind))
    )
    with torch.no_grad():
        logits = model(input_ids=IDS, use_cache=False).logits
    return (logits.full_tensor() if loss_parallel else logits).numpy()


@pytest.mark.parametrize(("kind", "loss_parallel"), [(Phi3Config, False), (LlamaConfig, False), (LlamaConfig, True)])
def test_plans_of_transformers_and_cut_logits(ranks, kind: type, loss_parallel: bool) -> None:
    with torch.no_grad():
        expected = build(kind)(input_ids=IDS, use_cache=False).logits
    for logits in ranks.run(_hf_plan_logits, 2, kind, loss_parallel):
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-5, atol=1e-5)


def test_family_plan_finds_decoder_and_head() -> None:
    plan, source = resolve_plan(build())
    assert source == "the llama plan"
    assert plan["model.layers.*.mlp.down_proj"] == "rowwise"
    assert plan["lm_head"] == "vocab_head"
    assert set(FAMILIES) >= {"llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi"}


def test_documents_of_packed_and_padded_rows() -> None:
    ids = torch.zeros(1, 5, dtype=torch.long)
    packed = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}
    assert documents(packed).tolist() == [[1, 1, 2, 2, 2]]
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    assert documents(padded).tolist() == [[0, 0, 0, -1, -1]]


def test_stages_are_as_even_as_can_be() -> None:
    assert [(r.start, r.end) for r in stage_ranges(7, 3)] == [(0, 3), (3, 5), (5, 7)]
    assert [(r.start, r.end) for r in stage_ranges(4, 2, [1, 3])] == [(0, 1), (1, 4)]


def test_padding_to_one_shape_adds_no_label() -> None:
    small = {"input_ids": torch.ones(1, 3), "shift_labels": torch.ones(1, 3), "attention_mask": torch.ones(1, 3)}
    large = {"input_ids": torch.ones(2, 5), "shift_labels": torch.ones(2, 5), "attention_mask": torch.ones(2, 5)}
    padded, _ = pad_to_one_shape([small, large])
    assert padded["shift_labels"].shape == (2, 5)
    assert (padded["shift_labels"] != -100).sum() == 3
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
