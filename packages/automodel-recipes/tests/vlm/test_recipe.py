"""The vision-language recipe on the engine: splits, resume, LoRA export, what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from automodel_core.config import load_config
from automodel_data.vlm.mixing import as_media_rows
from automodel_data.vlm.rows import VLMDataset
from automodel_recipes.build.call import build
from automodel_recipes.build.data import build_eval_loader
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.options import TrainOptions
from automodel_recipes.vlm.finetune import VLMFinetuneRecipe
from automodel_recipes.vlm.kd import VLMKnowledgeDistillationRecipe


@pytest.fixture(scope="module")
def qwen(families: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL with its processor, as a directory."""
    processor, model = families("qwen2_5_vl")
    path = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def train(qwen: Path, tmp_path: Path) -> Any:
    """``train(name, steps=..., resume=..., **sections)`` runs in this process; returns the recipe."""

    def run(
        name: str,
        *,
        resume: str = "never",
        max_steps: int | None = None,
        kind: Any = VLMFinetuneRecipe,
        **sections: Any,
    ) -> VLMFinetuneRecipe:
        config = {
            "recipe": "VLMFinetuneRecipe",
            "seed": 3,
            "device": "cpu",
            "model": {
                "_target_": "automodel_core.NeMoAutoModelForImageTextToText.from_pretrained",
                "pretrained_model_name_or_path": str(qwen),
                "dtype": "float32",
            },
            "dataset": {"_target_": "mock_vlm", "num_samples": 12, "image_size": 32, "text_only_every": 3},
            "step_scheduler": {"global_batch_size": 4, "local_batch_size": 4, "num_epochs": 2, "max_steps": 4},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
            "checkpoint": {"enabled": False, "checkpoint_dir": str(tmp_path / name)},
            **{key: value for key, value in sections.items() if key != "checkpoint"},
        }
        config["checkpoint"].update(sections.get("checkpoint", {}))
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        recipe = kind(load_config(path), TrainOptions(resume=resume, quiet=True, max_steps=max_steps))
        try:
            recipe.setup()
            recipe.train()
        finally:
            recipe.close()
        return recipe

    return run


def losses(recipe: VLMFinetuneRecipe) -> list[float]:
    lines = (recipe.run_dir.path / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "train"]


def weights(recipe: VLMFinetuneRecipe) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in recipe.unwrapped().named_parameters()}


def test_one_by_four_is_four_by_one_with_images_and_text_mixed(train: Any) -> None:
    whole = train("whole")
    split = train("split", step_scheduler={"global_batch_size": 4, "local_batch_size": 1, "max_steps": 4})
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(whole)[-1] < losses(whole)[0]


def test_a_teacher_that_sees_the_same_pictures(train: Any, qwen: Path, families: Any, tmp_path: Path) -> None:
    """Learning from another model's distribution brings the student nearer to it; from itself it stays put."""
    torch.manual_seed(1)
    teacher = type(families("qwen2_5_vl")[1])(families("qwen2_5_vl")[1].config)
    teacher.save_pretrained(tmp_path / "teacher")
    target = "automodel_core.NeMoAutoModelForImageTextToText.from_pretrained"

    def distilled(name: str, source: Any) -> VLMFinetuneRecipe:
        section = {"_target_": target, "pretrained_model_name_or_path": str(source), "dtype": "float32"}
        loss = {"_target_": "kd_loss", "kd_ratio": 1.0}
        return train(name, kind=VLMKnowledgeDistillationRecipe, teacher_model=section, loss_fn=loss)

    recipe = distilled("other", tmp_path / "teacher")
    assert losses(recipe)[-1] < 0.9 * losses(recipe)[0]
    assert losses(distilled("itself", qwen))[0] < 1e-6


@pytest.mark.parametrize("loss", ["chunked_ce", "fused_linear_ce"])
def test_every_loss_is_the_masked_one(train: Any, loss: str) -> None:
    reference = train("masked")
    assert losses(train(loss, loss_fn={"_target_": loss})) == pytest.approx(losses(reference), rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(train: Any) -> None:
    keep = {"enabled": True}
    schedule = {"global_batch_size": 4, "local_batch_size": 2, "num_epochs": 2, "ckpt_every_steps": 2, "max_steps": 4}
    whole = train("straight", step_scheduler=schedule)
    train("resumed", step_scheduler={**schedule, "max_steps": 2}, checkpoint=keep)
    second = train("resumed", step_scheduler=schedule, checkpoint=keep, resume="auto")
    mine, theirs = weights(second), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_full_run_writes_a_directory_that_plain_transformers_loads(train: Any) -> None:
    from transformers import AutoModelForImageTextToText

    from automodel_data.collate.families.parts import load_processor

    recipe = train("full")
    loaded = AutoModelForImageTextToText.from_pretrained(recipe.run_dir.final, dtype=torch.float32)
    mine = weights(recipe)
    assert all(torch.equal(p, mine[name]) for name, p in loaded.named_parameters())
    assert load_processor(str(recipe.run_dir.final)).image_processor.merge_size == 2


def test_lora_leaves_vision_alone_and_peft_loads_it(train: Any, qwen: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    peft = {"_target_": "lora", "target_modules": ["*language_model*q_proj", "*language_model*v_proj"], "dim": 4}
    recipe = train("lora", peft=peft)
    trained = [name for name, p in recipe.unwrapped().named_parameters() if p.requires_grad]
    assert trained
    assert not any("visual" in name for name in trained)
    base = AutoModelForImageTextToText.from_pretrained(qwen, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, recipe.run_dir.final).eval()
    batch = next(iter(recipe.train_loader))
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "label_index", "sample_ids")}
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, recipe.unwrapped().eval()(**inputs).logits, atol=1e-5)
        with loaded.disable_adapter():
            assert not torch.allclose(loaded(**inputs).logits, recipe.unwrapped()(**inputs).logits, atol=1e-4)


def test_adapter_merged_and_checkpoint_are_the_trained_model(train: Any, tmp_path: Path) -> None:
    from automodel_recipes.cli import main
    from automodel_recipes.places import find_place
    from automodel_recipes.vlm.inference import load_vlm

    peft = {"_target_": "lora", "match_all_linear": True, "exclude_modules": ["*lm_head*"], "dim": 4}
    recipe = train("adapted", peft=peft, checkpoint={"enabled": True})
    assert any("visual" in name for name, p in recipe.unwrapped().named_parameters() if p.requires_grad)
    run, merged = str(recipe.run_dir.path), str(tmp_path / "merged")
    assert main(["ckpt", "merge", run, "-o", merged]) == 0
    batch = next(iter(recipe.train_loader))
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "label_index", "sample_ids")}
    with torch.no_grad():
        expected = recipe.unwrapped().eval()(**inputs).logits
        for place in (run, merged, f"{run}@latest"):
            model, processor = load_vlm(find_place(place))
            assert torch.allclose(model(**inputs).logits, expected, atol=1e-5), place
            assert processor.image_processor.merge_size == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_mixture_of_pictures_and_of_text_as_the_text_recipe_reads_it(
    packed: bool, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOMODEL_DATA_CACHE", str(tmp_path / "cache"))
    talk = {"messages": [{"role": "user", "content": "say hi"}, {"role": "assistant", "content": "hi there"}]}
    (tmp_path / "talk.jsonl").write_text((json.dumps(talk) + "\n") * 4)
    sources = {
        "pictures": {"_target_": "mock_vlm", "num_samples": 8, "image_size": 32},
        "talk": {"_target_": "chat", "path_or_dataset_id": str(tmp_path / "talk.jsonl")},
    }
    dataset = {"_target_": "mixture", "datasets": sources, "weights": {"pictures": 2, "talk": 1}}
    packing = {"packed_sequence": {"packed_sequence_size": 64}} if packed else {}
    recipe = train("mixed", dataset=dataset, max_steps=2, **packing)
    assert all(0 < loss < 10 for loss in losses(recipe))
    rows = as_media_rows(build(recipe.config.dataset, processor=recipe.processor, tokenizer=recipe.tokenizer))
    texts = [rows[i] for i in range(12) if not rows[i]["features"]]
    assert len(texts) == 4
    alone = build(recipe.config.dataset.datasets.pictures, processor=recipe.processor)
    assert {tuple(row["input_ids"]) for row in texts} == {tuple(recipe_text_row(talk, recipe.processor)["input_ids"])}
    assert rows.report.num_label_tokens == sum(sum(x != -100 for x in rows[i]["labels"][1:]) for i in range(12))
    assert rows.describe_media(next(i for i in range(12) if rows[i]["features"])) == alone.describe_media(0)


def recipe_text_row(row: dict[str, Any], processor: Any) -> dict[str, Any]:
    return VLMDataset([row], processor)[0]


@pytest.fixture
def pictures_file(tmp_path: Path) -> Path:
    """Ten rows with pictures of their own, two without, one broken."""
    from PIL import Image

    path, rows = tmp_path / "rows.jsonl", []
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 0, 200)).save(tmp_path / f"{i}.png")
        has_picture = i % 6 != 5
        question = "<image>which?" if has_picture else "which?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "b" * (1 + i)}]
        rows.append({"conversations": turns, **({"image": f"{i}.png"} if has_picture else {})})
    rows.insert(3, {**rows[0], "image": "missing.png"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_stream_trains_as_the_rows_do_and_resumes(train: Any, pictures_file: Path) -> None:
    """The same rows in the same order without shuffling; a stopped stream goes on bit for bit."""
    keys = {
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 4, "num_epochs": 2, "max_steps": 4},
        "dataloader": {"shuffle": False},
    }
    rows = {"_target_": "llava_style", "path_or_dataset": str(pictures_file), "max_bad_fraction": 0.5}
    stream = {**rows, "_target_": "llava_stream"}
    whole = train("rows", dataset=rows, **keys)
    streamed = train("stream", dataset=stream, **keys)
    assert len(losses(whole)) == 4
    assert losses(streamed) == pytest.approx(losses(whole), rel=1e-6)
    assert [record.why for record in streamed.train_loader.dataset.report.bad_rows] == ["media file is missing"]
    saved = {"dataset": stream, **keys, "checkpoint": {"enabled": True}}
    train("stopped", max_steps=3, **saved)
    resumed = train("stopped", resume="auto", **saved)
    mine, theirs = weights(resumed), weights(streamed)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_a_stream_cannot_do_is_said(train: Any, pictures_file: Path) -> None:
    stream = {"_target_": "llava_stream", "path_or_dataset": str(pictures_file), "max_bad_fraction": 0.5}
    with pytest.raises(UnusableInputError, match=r"Set step_scheduler\.max_steps"):
        train("endless", dataset=stream, step_scheduler={"global_batch_size": 2, "local_batch_size": 2})
    with pytest.raises(UnusableInputError, match="packed_sequence over a stream of media"):
        train("packed", dataset=stream, packed_sequence={"packed_sequence_size": 64})
    with pytest.raises(UnusableInputError, match="validation set 'val' is a stream"):
        train("validated", validation_dataset=stream)


def test_every_section_of_the_text_recipe_works_with_pictures(train: Any) -> None:
    """Noise, an average that is what is written, half precision, several validation sets, a watch-dog."""
    validation = {"_target_": "mock_vlm", "num_samples": 5, "image_size": 32, "text_only_every": 2, "seed": 5}
    recipe = train(
        "sections",
        neftune={"noise_alpha": 5.0},
        ema={"decay": 0.5},
        mixed_precision={"dtype": "bfloat16"},
        watchdog={"on_non_finite": "skip"},
        validation_dataset=validation,
        validation_dataset_again={**validation, "seed": 6},
        early_stopping={"patience": 9},
        lr_scheduler={"lr_decay_style": "cosine", "lr_warmup_steps": 1},
        checkpoint={"enabled": True, "is_async": True},
    )
    rows = [json.loads(line) for line in recipe.run_dir.metrics.read_text().splitlines()]
    measured = {(row["name"], row["step"]) for row in rows if row["kind"] == "val"}
    assert {name for name, _ in measured} == {"val", "again"}
    assert all(row["mfu_percent"] is None or row["mfu_percent"] > 0 for row in rows if row["kind"] == "train")
    trained, written = weights(recipe), load_file(recipe.run_dir.final / "model.safetensors")
    assert any(not torch.equal(p, written[name]) for name, p in trained.items() if name in written), "the average"


def test_generated_answers_keep_their_pictures(train: Any) -> None:
    from PIL import Image

    validation = {"_target_": "mock_vlm", "num_samples": 4, "image_size": 40, "text_only_every": 2, "seed": 5}
    evaluation = {"exact_match": True, "max_new_tokens": 2, "at_start": False}
    recipe = train("answers", max_steps=1, validation_dataset=validation, evaluation=evaluation)
    samples = [json.loads(line) for line in (recipe.run_dir.path / "samples.jsonl").read_text().splitlines()]
    assert [sample.get("images") for sample in samples] == [
        None,
        ["samples/row-1-0.png"],
        None,
        ["samples/row-3-0.png"],
    ]
    kept = Image.open(recipe.run_dir.path / "samples/row-1-0.png")
    assert kept.tobytes() == recipe.eval_dataset.pictures(1)[0].tobytes()
    assert samples[1]["prompt"].endswith("Which colour?")


def test_freezing_and_packing_reach_the_engine(train: Any, qwen: Path) -> None:
    recipe = train("packed", freeze_config={"freeze_vision_tower": True}, packed_sequence={"packed_sequence_size": 128})
    before = weights(train("none", max_steps=1, optimizer={"_target_": "torch.optim.SGD", "lr": 0.0}))
    moved = {name for name, p in weights(recipe).items() if not torch.equal(p, before[name])}
    assert moved
    assert not any("visual" in name for name in moved)


def test_rows_with_other_pictures_are_other_questions(train: Any) -> None:
    """Ranking rows by loss: the same words about another picture are no contradiction, about the same one they are."""
    from PIL import Image

    from automodel_recipes.evaluation.per_row import rank_rows

    def row(color: str, answer: str) -> dict[str, Any]:
        content = [{"type": "image", "image": Image.new("RGB", (32, 32), color)}, {"type": "text", "text": "which?"}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}

    validation = {"_target_": "mock_vlm", "num_samples": 2, "image_size": 32}
    recipe = train("ranked", max_steps=1, validation_dataset=validation)
    rows = VLMDataset([row("red", "a"), row("blue", "b"), row("red", "c")], recipe.processor)
    loader = build_eval_loader(recipe.config, rows, collate_fn=recipe._collate("dataloader"), parallel=recipe.parallel)
    recipe.eval_loaders = {"val": loader}
    notes = {score.row: score.note for score in rank_rows(recipe)}
    assert notes == {0: "", 1: "", 2: "same prompt as row 0, other answer"}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_tokens_that_the_processor_adds_train_and_are_read_back(train: Any, kind: str) -> None:
    """`mock_vlm` rows have none of them: that the rows are there, train or stay, and go to disk, is what counts."""
    from automodel_recipes.places import find_place
    from automodel_recipes.vlm.inference import load_vlm

    sections: dict[str, Any] = {"peft": {"_target_": "lora", "dim": 4}} if kind == "lora" else {}
    recipe = train("added", processor={"add_special_tokens": ["<|tool|>"]}, checkpoint={"enabled": True}, **sections)
    (number,) = recipe.tokenizer.convert_tokens_to_ids(["<|tool|>"])
    model = recipe.unwrapped().eval()
    assert model.config.get_text_config().vocab_size > number
    ids = torch.tensor([[number, 5, number, 7]])
    for place in (recipe.run_dir.path, f"{recipe.run_dir.path}@latest"):
        theirs, processor = load_vlm(find_place(str(place)))
        assert processor.tokenizer.convert_tokens_to_ids("<|tool|>") == number
        torch.testing.assert_close(theirs(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    if kind == "lora":
        saved = load_file(recipe.run_dir.path / "final/adapter_model.safetensors")
        rows = [tensor for name, tensor in saved.items() if "trainable_tokens_delta" in name]
        assert [tensor.shape[0] for tensor in rows] == [1] * len(rows) != []
