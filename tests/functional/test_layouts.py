"""Recipes under every layout of ``distributed:``: training, validation, answers, checkpoints and exported weights.

One process is the measure: each layout trains from the same YAML but for its ``distributed`` section, and gives the
same losses, gradient norms, validation losses and generated answers, and weights that plain transformers or PEFT can
read.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layout_runs import MLP_PLAN, LayoutRun, Left, train
from rank_group import run_in_group

LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "ddp": {"strategy": "ddp"},
        "ddp ac": {"strategy": "ddp", "activation_checkpointing": "full"},
        "fsdp2": {},
        "hsdp": {"dp_replicate_size": 2},
        "offload": {"cpu_offload": True},
        "zero2 prefetch": {"reshard_after_forward": False, "forward_prefetch": 1, "backward_prefetch": 1},
        "deferred": {"defer_gradient_sync": True},
        "mp": {"mp_policy": {"param_dtype": "float32", "reduce_dtype": "torch.float32"}},
        "ac full": {"activation_checkpointing": True},
        "ac selective": {"activation_checkpointing": "selective"},
        "ac offload": {"activation_checkpointing": {"mode": "full", "every": 2, "offload": True}},
        "compile": {"compile": {"backend": "aot_eager"}},
        "ac budget": {
            "compile": {"backend": "aot_eager"},
            "activation_checkpointing": {"mode": "memory_budget", "budget": 0.5},
        },
        "tp": {"tp_size": 2},
        "tp sp": {"tp_size": 2, "sequence_parallel": True},
        "tp cut logits": {"tp_size": 2, "loss_parallel": True},
        "tp hf": {"tp_size": 2, "tp_plan": "hf"},
        "tp mapping": {
            "tp_size": 2,
            "tp_plan": MLP_PLAN,
        },
        "tp import path": {"tp_size": 2, "tp_plan": "layout_runs:MLP_PLAN"},
        "cp": {"cp_size": 2},
        "cp ring": {"cp_size": 2, "cp_method": "ring"},
        "cp contiguous": {"cp_size": 2, "cp_load_balanced": False},
        "pp": {"pp_size": 2},
        "pp gpipe": {"pp_size": 2, "pp_schedule": "gpipe", "layers_per_stage": [1, 3]},
        "pp interleaved": {"pp_size": 2, "pp_schedule": "interleaved1f1b", "stages_per_rank": 2},
        "pp zero bubble": {"pp_size": 2, "pp_schedule": "zero_bubble", "stages_per_rank": 2},
    },
    4: {
        "dp2 tp2": {"tp_size": 2},
        "dp2 cp2": {"cp_size": 2},
        "dp2 pp2": {"pp_size": 2},
        "tp2 pp2": {"tp_size": 2, "pp_size": 2},
        "hsdp": {"dp_replicate_size": 2},
    },
}
QUICK = ("tp sp", "pp")
MAIN = ("ddp", "fsdp2", "hsdp", "tp sp", "cp", "cp ring", "pp", "pp interleaved")
"""Layouts of two processes that adapters and packs are trained under, too; the others do not look at them."""


def configure(
    config: dict[str, Any],
    out: Path,
    distributed: dict[str, Any],
    *,
    lora: bool,
    packed: bool,
    targets: tuple[str, ...] = ("*.q_proj", "*.down_proj"),
) -> dict[str, Any]:
    """Four steps of AdamW, two micro-batches or more in each, the last window incomplete, with all that a run does."""
    rows = dict(config["dataset"])
    config = {
        **config,
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 2, "num_epochs": 2, "max_steps": 4},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01, "eps": 1e-4},
        "validation_dataset": rows,
        "evaluation": {"exact_match": True, "at_start": False, "max_new_tokens": 5, "num_rows": 5},
        "checkpoint": {"enabled": True, "checkpoint_dir": str(out)},
        "distributed": {"strategy": "fsdp2", **distributed},
    }
    if lora:
        config["peft"] = {"_target_": "lora", "target_modules": list(targets), "dim": 4, "alpha": 8}
    if packed:
        config["packed_sequence"] = {"packed_sequence_size": 128}
    return config


@pytest.fixture(scope="session")
def four_layers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with layers enough for four stages."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("four") / "model"
    shutil.copytree(tiny_model, path)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, num_hidden_layers=4)).save_pretrained(path)
    return path


@pytest.fixture
def run_layouts(tiny_config, four_layers, tmp_path):
    """``run(world_size, layouts, **kind)`` -> layout name -> its directory and what it left."""
    tiny_config["model"]["pretrained_model_name_or_path"] = str(four_layers)

    def run(
        world_size: int, layouts: dict[str, Any], *, max_steps: int = 4, local_batch_size: int = 2, **kind: Any
    ) -> dict[str, tuple[Path, Left]]:
        runs = []
        for name, distributed in layouts.items():
            out = tmp_path / f"{name} {world_size}".replace(" ", "-")
            config = configure(tiny_config, out, distributed, **kind)
            config["step_scheduler"] |= {"max_steps": max_steps, "local_batch_size": local_batch_size}
            runs.append(LayoutRun(name, config))
        found = {}
        for item, answers in run_in_group(world_size, train, runs):
            if isinstance(answers, str):
                pytest.fail(f"{item.name}\n{answers}")
            found[item.name] = Path(item.config["checkpoint"]["checkpoint_dir"]), answers[0]
        assert len(found) == len(layouts)
        return found

    return run


def compare(
    name: str, expected: tuple[Path, Left], got: tuple[Path, Left], *, num_steps: int = 4, tolerance: float = 1e-5
) -> None:
    for kind, key in (("train", "loss"), ("train", "grad_norm"), ("val", "loss")):
        want = expected[1].of(kind, key)
        assert len(want) == (num_steps if kind == "train" else 1), name
        # Four steps of AdamW at a large rate let rounding grow; a wrong reduction is off by far more.
        assert got[1].of(kind, key) == pytest.approx(want, rel=tolerance * (10 if key == "grad_norm" else 1)), (
            name,
            key,
        )
    answers = answers_of(got[0])  # rank 0's share
    assert answers, name
    assert answers <= answers_of(expected[0]), name
    assert flops_per_token(got[0]) == flops_per_token(expected[0]) > 0, name
    want, have = exported(expected[0]), exported(got[0])
    assert want.keys() == have.keys(), name
    for key, tensor in want.items():
        # A key's bias has no gradient but rounding: softmax does not see it.
        assert (have[key] - tensor).norm() <= 1e-4 * tensor.norm() + 1e-7, (name, key)


def answers_of(run: Path) -> set[tuple[str, str]]:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return {(row["prompt"], row["generated"]) for row in rows}


def flops_per_token(run: Path) -> float:
    """What MFU is computed from: the whole model's, however it is cut."""
    return float(json.loads((run / "run.json").read_text())["mfu"]["flops_per_token"])


@functools.cache
def exported(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (run / "final").glob("*.safetensors")
    return load_file(file)


def test_quick(run_layouts) -> None:
    [expected] = run_layouts(1, {"one": {}}, lora=False, packed=False).values()
    chosen = {name: LAYOUTS[2][name] for name in QUICK}
    for name, got in run_layouts(2, chosen, lora=False, packed=False).items():
        compare(name, expected, got)
        read = [report for report in got[1].reports if report.startswith("base weights")]
        assert len(read) == 1, name
        assert "read by each rank straight into its shards" in read[0], name


@pytest.mark.more
@pytest.mark.parametrize("kind", ["full", "lora", "packed"])
def test_every_layout(run_layouts, kind: str) -> None:
    settings = {"lora": kind == "lora", "packed": kind == "packed"}
    [expected] = run_layouts(1, {"one": {}}, **settings).values()
    for world_size, layouts in LAYOUTS.items():
        narrow = kind != "full" and world_size == 2
        chosen = {name: layout for name, layout in layouts.items() if name in MAIN or not narrow}
        for name, got in run_layouts(world_size, chosen, **settings).items():
            compare(name, expected, got, num_steps=2 if kind == "packed" else 4)  # packs are fewer than rows


@pytest.mark.more
def test_a_loss_on_hidden_states(run_layouts, tiny_config) -> None:
    """The head is entered once, whole or cut."""
    tiny_config["loss_fn"] = {"_target_": "fused_linear_ce"}
    settings = {"lora": False, "packed": False}
    [expected] = run_layouts(1, {"one": {}}, **settings).values()
    chosen = {name: LAYOUTS[2][name] for name in ("ddp", "fsdp2", "tp sp", "tp cut logits", "cp")}
    for name, got in run_layouts(2, chosen, **settings).items():
        compare(name, expected, got)


@pytest.mark.more
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_mixture_of_experts(run_layouts, tiny_config, tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """Experts spread over ranks; the router's balance is measured over the tokens of all ranks."""
    import shutil

    from transformers import MixtralConfig, MixtralForCausalLM

    path = tmp_path / "mixtral"
    shutil.copytree(tiny_model, path)
    torch.manual_seed(0)
    fields = json.loads((tiny_model / "config.json").read_text())
    fields = {key: fields[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")}
    extra = {"intermediate_size": 48, "num_hidden_layers": 4, "num_local_experts": 4, "output_router_logits": True}
    config = MixtralConfig(
        **fields, **extra, router_aux_loss_coef=0.1, initializer_range=0.2, max_position_embeddings=512
    )
    MixtralForCausalLM(config).save_pretrained(path)
    tiny_config["model"]["pretrained_model_name_or_path"] = str(path)
    settings = {"lora": kind == "lora", "packed": False, "targets": ["*.q_proj", "*.v_proj"]}
    # One micro-batch in a process is what the ranks of the others see together.
    [expected] = run_layouts(1, {"one": {}}, local_batch_size=8, **settings).values()
    for layouts, rows in (({"fsdp2": {}, "ep": {"ep_size": 2}}, 4), ({"tp": {"tp_size": 2}, "cp": {"cp_size": 2}}, 8)):
        for name, got in run_layouts(2, layouts, local_batch_size=rows, **settings).items():
            compare(name, expected, got)


VISION = ("fsdp2", "tp sp", "cp", "pp")


def configure_vision(model: Path, out: Path, distributed: dict[str, Any], *, lora: bool) -> dict[str, Any]:
    """Three steps on rows with one image each, with all that a run does."""
    config = {
        "recipe": "VLMFinetuneRecipe",
        "seed": 3,
        "device": "cpu",
        "model": {
            "_target_": "automodel_core.NeMoAutoModelForImageTextToText.from_pretrained",
            "pretrained_model_name_or_path": str(model),
            "dtype": "float32",
        },
        "dataset": {"_target_": "mock_vlm", "num_samples": 12, "image_size": 32},
        "validation_dataset": {"_target_": "mock_vlm", "num_samples": 6, "image_size": 32},
        "dataloader": {"shuffle": False},
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 2, "num_epochs": 2, "max_steps": 3},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.005, "eps": 1e-4},
        "evaluation": {"exact_match": True, "at_start": False, "max_new_tokens": 4, "num_rows": 4},
        "checkpoint": {"enabled": True, "checkpoint_dir": str(out)},
        "distributed": {"strategy": "fsdp2", **distributed},
    }
    if lora:
        targets = ["*language_model*.q_proj", "*language_model*.down_proj"]
        config["peft"] = {"_target_": "lora", "target_modules": targets, "dim": 4, "alpha": 8}
    return config


@pytest.mark.more
@pytest.mark.parametrize(
    ("family", "layouts", "lora"),
    [
        ("llava", VISION, False),
        ("llava", VISION, True),
        ("gemma3", VISION, False),
        ("qwen2_5_vl", VISION, True),
        ("qwen3_vl", ("fsdp2", "tp", "cp"), False),  # its image features enter as many layers as the tiny model has
    ],
)
def test_vision_language_models(tmp_path: Path, family: str, layouts: tuple[str, ...], lora: bool) -> None:
    compare_vision(tmp_path, family, layouts, lora=lora)


@pytest.mark.more
def test_packed_rows_with_images(tmp_path: Path) -> None:
    compare_vision(tmp_path, "qwen2_5_vl", ("tp sp", "cp", "pp"), packed_sequence={"packed_sequence_size": 256})


def compare_vision(tmp_path: Path, family: str, layouts: tuple[str, ...], *, lora: bool = False, **extra: Any) -> None:
    """Train a tiny vision-language model in one process and under each layout, and compare."""
    import tiny_vlm

    processor = tiny_vlm.build_processor(family)
    tiny_vlm.build_model(family, processor.tokenizer).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    found = {}
    for world_size, chosen in ((1, {"one": {}}), (2, {name: LAYOUTS[2][name] for name in layouts})):
        runs = []
        for name, distributed in chosen.items():
            out = tmp_path / name.replace(" ", "-")
            config = configure_vision(tmp_path / "model", out, distributed, lora=lora) | extra
            runs.append(LayoutRun(name, config))
        for item, answers in run_in_group(world_size, train, runs):
            assert not isinstance(answers, str), f"{item.name}\n{answers}"
            found[item.name] = tmp_path / item.name.replace(" ", "-"), answers[0]
    for name in layouts:
        compare(name, found["one"], found[name], num_steps=2 if extra else 3)  # packs are fewer than rows


CHAIN = [(4, "dp2 tp2"), (2, "pp interleaved"), (2, "cp"), (1, "one"), (4, "dp2 pp2")]


@pytest.mark.more
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_each_step_under_another_layout_is_one_loss_curve(run_layouts, tiny_config, tmp_path: Path, kind: str) -> None:
    """A checkpoint of every layout goes on under the next one, as if nothing had happened."""
    settings = {"lora": kind == "lora", "packed": False}
    tiny_config["step_scheduler"] = {**tiny_config["step_scheduler"], "num_epochs": 2}
    [(whole, expected)] = run_layouts(1, {"one": {}}, max_steps=len(CHAIN), **settings).values()
    out = tmp_path / "chain"
    for step, (world_size, name) in enumerate(CHAIN, start=1):
        distributed = LAYOUTS.get(world_size, {}).get(name, {})
        config = configure(tiny_config, out, distributed, **settings)
        config["step_scheduler"]["max_steps"] = len(CHAIN)
        config["evaluation"]["exact_match"] = False
        run = LayoutRun(name, config, resume="auto" if step > 1 else "never", max_steps=step)
        [(_, answers)] = run_in_group(world_size, train, [run])
        assert not isinstance(answers, str), answers
    assert answers[0].of("train", "loss") == pytest.approx(expected.of("train", "loss"), rel=1e-5)
    assert answers[0].of("train", "grad_norm") == pytest.approx(expected.of("train", "grad_norm"), rel=1e-4)
    want, have = exported(whole), exported(out)
    assert all((have[key] - tensor).norm() <= 1e-4 * tensor.norm() for key, tensor in want.items())


@pytest.mark.more
def test_demo_through_the_command_line_on_four_processes(cli, tmp_path: Path) -> None:
    """``dp 2 x tp 2`` by ``--nproc-per-node 4``: plain transformers reads what was trained, with the same logits."""
    import yaml
    from transformers import AutoModelForCausalLM

    config = yaml.safe_load(Path("examples/llm/demo_full.yaml").read_text())
    config["step_scheduler"].update(global_batch_size=8, local_batch_size=2, max_steps=3)
    config["lr_scheduler"]["lr_warmup_steps"] = 1
    del config["validation_dataset"], config["evaluation"]
    ids = torch.arange(3, 35)[None]
    one = cli({**config, "distributed": {"strategy": "fsdp2"}}, "one")
    four = cli({**config, "distributed": {"strategy": "fsdp2", "tp_size": 2}}, "four", "--nproc-per-node", "4")
    assert "dp_shard 2 x tp 2" in four.stdout
    assert four.train("loss") == pytest.approx(one.train("loss"), rel=1e-5)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(run.path / "final")(ids).logits for run in (one, four)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
