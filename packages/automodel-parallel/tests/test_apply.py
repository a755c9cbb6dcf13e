"""Assembly from the meta device, and edits that must not change results."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from automodel_parallel import FSDP2Manager, SingleProcessManager, assemble
from automodel_parallel.activation_checkpoint import ActivationCheckpointing, apply_activation_checkpointing
from automodel_parallel.compile import CompileConfig, compile_blocks
from automodel_parallel.init import DistInfo
from automodel_parallel.report import ParallelReport

ALONE = DistInfo(0, 0, 1, torch.device("cpu"), None, True)
SIZES = {
    "vocab_size": 51,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
IDS = torch.arange(24).reshape(2, 12) % 51


def build(kind: type = LlamaConfig, **extra: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**SIZES, **extra), dtype=torch.float32)


def loss_and_gradients(model: torch.nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


def _assemble_in_shards(info: DistInfo, kind: type) -> torch.Tensor:
    source = build(kind, tie_word_embeddings=True)
    with torch.device("meta"):
        model = build(kind, tie_word_embeddings=True)

    def load(plain: torch.nn.Module) -> str:
        from torch.distributed.tensor import distribute_tensor

        for name, parameter in plain.named_parameters():
            whole = source.get_parameter(name).detach()
            parameter.data.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
        return "loaded"

    context = FSDP2Manager(tp_size=2).setup(info)
    done = assemble(model, context, transforms=[lambda m: None, lambda m: "frozen"], load=load)
    assert done.reports == ["frozen", "loaded"]
    assert "tensor parallel over 2 ranks by the" in str(done.parallel)
    with torch.no_grad():
        return done.model(input_ids=IDS, use_cache=False).logits.numpy()


@pytest.mark.parametrize("kind", [LlamaConfig, Gemma2Config])
def test_meta_model_in_shards_gives_the_same_logits(ranks, kind: type) -> None:
    with torch.no_grad():
        expected = build(kind, tie_word_embeddings=True)(input_ids=IDS).logits
    for logits in ranks.run(_assemble_in_shards, 4, kind):
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-5, atol=1e-5)


def test_meta_model_needs_a_load() -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(ValueError, match="on the meta device without load"):
        assemble(model, SingleProcessManager().setup(ALONE))


@pytest.mark.parametrize(
    "settings", [True, "selective", {"mode": "full", "every": 2}, {"mode": "none", "offload": True}]
)
def test_checkpointing_changes_no_bit_and_no_name(settings) -> None:
    expected_loss, expected = loss_and_gradients(build())
    model, report = build(), ParallelReport("single", "")
    names = [name for name, _ in model.named_parameters()]
    apply_activation_checkpointing(model, ActivationCheckpointing.parse(settings), compiled=False, report=report)
    assert [name for name, _ in model.named_parameters()] == names
    loss, gradients = loss_and_gradients(model)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected))
    assert "activation checkpointing" in str(report)


def saved_bytes(model: torch.nn.Module) -> int:
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=IDS, use_cache=False)
    return total


def test_full_checkpointing_keeps_less_than_selective_and_none() -> None:
    kept = {}
    for mode in ("none", "selective", "full"):
        model = build()
        settings = ActivationCheckpointing(mode=mode)
        apply_activation_checkpointing(model, settings, compiled=False, report=ParallelReport("", ""))
        kept[mode] = saved_bytes(model)
    assert kept["full"] < 0.6 * kept["none"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("half", "mode 'half': allowed are none, full, selective, memory_budget"),
        ({"mod": "full"}, "activation_checkpointing has .*key 'mod'"),
        ({"mode": "full", "scope": "*vision*"}, r"scope '\*vision\*' matches no block of LlamaForCausalLM"),
        ({"mode": "memory_budget"}, "memory_budget without compile"),
        ({"every": 0}, "every=0: it must be >= 1"),
        ({"budget": 2.0}, "budget=2.0: it must be between 0 and 1"),
    ],
)
def test_checkpointing_mistakes(settings, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        apply_activation_checkpointing(
            build(), ActivationCheckpointing.parse(settings), compiled=False, report=ParallelReport("", "")
        )


def test_compiled_blocks_equal_eager_and_keep_names() -> None:
    expected_loss, expected = loss_and_gradients(build())
    model = build()
    names = [name for name, _ in model.named_parameters()]
    compile_blocks(model, CompileConfig(backend="aot_eager"), report=ParallelReport("", ""))
    assert [name for name, _ in model.named_parameters()] == names
    loss, gradients = loss_and_gradients(model)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    for got, want in zip(gradients, expected):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_compile_mistakes() -> None:
    with pytest.raises(ValueError, match="compile has unknown key 'bakend'"):
        CompileConfig.parse({"bakend": "inductor"})
    with pytest.raises(ValueError, match="compile found no blocks"):
        compile_blocks(torch.nn.Linear(2, 2), CompileConfig(), report=ParallelReport("", ""))
