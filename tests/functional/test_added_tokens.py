"""Tokens that the YAML adds are learned, survive a stop, and go to plain transformers and PEFT with the same logits."""

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from automodel_core.config import config_from_dict
from automodel_recipes import TrainOptions
from automodel_recipes.build.data import build_tokenizer
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.exporting import merge_adapter
from automodel_recipes.inference import load_for_inference
from automodel_recipes.llm.kd import KnowledgeDistillationRecipe
from automodel_recipes.places import find_place
from automodel_recipes.validation import validate
from layout_runs import LayoutRun, train
from rank_group import run_in_group
from resuming import LORA, run, stopped_and_resumed, trace, weights_hash

ADDED = ["zq", "<|tool|>"]
NUM_OLD = 96
LAYOUTS = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "pp": {"strategy": "fsdp2", "pp_size": 2},
    "tp": {"strategy": "fsdp2", "tp_size": 2},
}
QUESTION, ANSWER = "call 3", "<|tool|>zq"


def more(kind):
    """A kind that waits for the longer lane."""
    return pytest.param(kind, marks=pytest.mark.more)


def tied(model):
    """Rewrite a model directory with one weight for embedding and head."""
    config = AutoConfig.from_pretrained(model, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)


def padded(model):
    """Rewrite a model directory with eight rows that no token uses."""
    made = AutoModelForCausalLM.from_pretrained(model)
    made.resize_token_embeddings(NUM_OLD + 8)
    made.save_pretrained(model)


@pytest.fixture
def config(tiny_config, tiny_model, tmp_path):
    """Answers made of two added tokens, of which the base knows neither."""
    model = tmp_path / "base"
    shutil.copytree(tiny_model, model)
    chats = [
        {"messages": [{"role": "user", "content": f"call {i}"}, {"role": "assistant", "content": ANSWER}]}
        for i in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    tiny_config["model"]["pretrained_model_name_or_path"] = str(model)
    tiny_config["dataset"]["path_or_dataset_id"] = str(tmp_path / "rows.jsonl")
    tiny_config["tokenizer"] = {"add_tokens": ADDED[:1], "add_special_tokens": ADDED[1:]}
    tiny_config["step_scheduler"] = {"global_batch_size": 4, "local_batch_size": 2, "num_epochs": 14}
    tiny_config["optimizer"] = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "run")}
    return tiny_config


def change(config, kind):
    """Full training or LoRA, of a tied or untied model, with rows to spare or not."""
    method, _, shape = kind.partition(" ")
    if method == "lora":
        config["peft"] = {**LORA, "dropout": 0.0, "dim": 16, "alpha": 32}
    if shape:
        {"tied": tied, "padded": padded}[shape](config["model"]["pretrained_model_name_or_path"])
    return config


def base_for(config, tokenizer):
    """The base as a stranger gets it ready for the adapter."""
    base = AutoModelForCausalLM.from_pretrained(config["model"]["pretrained_model_name_or_path"])
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer))
    return base


def read_by_strangers(config, final):
    """Model and tokenizer of an exported directory through transformers, and PEFT, alone."""
    tokenizer = AutoTokenizer.from_pretrained(final)
    if "peft" not in config:
        return AutoModelForCausalLM.from_pretrained(final).eval(), tokenizer
    return peft.PeftModel.from_pretrained(base_for(config, tokenizer), final).eval(), tokenizer


@torch.no_grad()
def answer(model, tokenizer):
    """The greedy answer, added special tokens included."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    made = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return "".join(tokenizer.convert_ids_to_tokens(made.tolist()))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.tensor([[4, NUM_OLD, 20, NUM_OLD + 1, 8]])).logits


@pytest.mark.parametrize("kind", ["full", "lora tied", *map(more, ["full tied", "full padded", "lora", "lora padded"])])
def test_new_tokens_are_learned_and_read_by_plain_libraries(config, kind, tmp_path):
    config = change(config, kind)
    recipe = run(config)
    (told,) = [report for report in map(str, recipe.built.reports) if report.startswith("vocabulary:")]
    assert "2 tokens added (ids 96 to 97)" in told
    assert ("embedding of 104 rows has room" if "padded" in kind else "of 96 rows grown to 98") in told
    model, tokenizer = read_by_strangers(config, recipe.run_dir.path / "final")
    assert tokenizer.convert_tokens_to_ids(ADDED) == [NUM_OLD, NUM_OLD + 1]
    rows = NUM_OLD + (8 if "padded" in kind else 2)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == rows
    torch.testing.assert_close(logits(model), logits(recipe.unwrapped()), rtol=1e-5, atol=1e-5)
    assert answer(model, tokenizer) == ANSWER + "</s>"
    assert answer(base_for(config, tokenizer), tokenizer) != ANSWER + "</s>"
    places = [find_place(str(recipe.run_dir.path)), find_place(f"{recipe.run_dir.path}@latest")]
    if "peft" in config:
        for number, place in enumerate(tuple(places)):
            merge_adapter(place, tmp_path / f"merged-{number}")
            places.append(find_place(str(tmp_path / f"merged-{number}")))
    for place in places:
        ours, words = load_for_inference(place)
        torch.testing.assert_close(logits(ours), logits(recipe.unwrapped()), rtol=1e-5, atol=1e-5)
        assert answer(ours, words) == ANSWER + "</s>"


@pytest.mark.more
def test_an_adapter_with_new_tokens_does_not_load_on_a_base_that_did_not_grow(config):
    """Why a stranger has to resize."""
    recipe = run(change(config, "lora"))
    base = AutoModelForCausalLM.from_pretrained(config["model"]["pretrained_model_name_or_path"])
    with pytest.raises((RuntimeError, IndexError)):
        peft.PeftModel.from_pretrained(base, recipe.run_dir.path / "final")


@pytest.mark.parametrize("kind", [more("full"), "lora"])
def test_only_what_shall_train_trains(config, kind):
    recipe = run(change(config, kind))
    model, _ = read_by_strangers(config, recipe.run_dir.path / "final")
    if kind == "lora":
        model = model.merge_and_unload()
    base = AutoModelForCausalLM.from_pretrained(config["model"]["pretrained_model_name_or_path"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = base.state_dict()[name], model.state_dict()[name]
        assert (new[NUM_OLD:] - old.mean(0)).abs().amax(1).min() > 1e-3, name
        assert torch.equal(new[:NUM_OLD], old) == (kind == "lora"), name


@pytest.mark.parametrize("kind", [more("full"), "lora tied"])
def test_a_resumed_run_is_bit_identical(config, kind, tmp_path):
    config = change(config, kind)
    config["step_scheduler"]["num_epochs"] = 4
    straight = run(config)
    resumed = stopped_and_resumed(config, tmp_path, [3, 7])
    assert trace(resumed) == trace(straight)
    assert weights_hash(resumed) == weights_hash(straight)


@pytest.mark.more
def test_an_adapter_with_new_tokens_is_trained_on(config, tmp_path):
    first = run(change(config, "lora"))
    config["peft"] = {"_target_": "adapter", "path": str(first.run_dir.path / "final")}
    config["checkpoint"]["checkpoint_dir"] = str(tmp_path / "second")
    second = run(config)
    before, after = ([row[0] for row in trace(recipe).values()] for recipe in (first, second))
    assert float.fromhex(after[0]) < 0.5 * float.fromhex(before[0])


@pytest.mark.parametrize(
    "sections, told",
    [
        ({"tokenizer": {"add_tokens": ["abc", "a"]}}, "add_tokens: tokens to add name 'a', which the tokenizer knows"),
        ({"freeze_config": {"freeze_modules": ["model.embed_tokens"]}}, "added tokens with a frozen embedding"),
        ({"peft": {"_target_": "peft.IA3Config", "target_modules": ["k_proj"], "feedforward_modules": []}},
         "added tokens under peft method IA3Config"),
    ],
)  # fmt: skip
def test_what_would_leave_rows_untrained_is_refused(config, sections, told):
    with pytest.raises(UnusableInputError, match=told):
        run({**config, **sections})


def test_a_teacher_without_the_tokens_is_refused(config, tiny_model):
    config["teacher_model"] = {**config["model"], "pretrained_model_name_or_path": str(tiny_model)}
    config["loss_fn"] = {"_target_": "kd_loss"}
    recipe = KnowledgeDistillationRecipe(config_from_dict(config), TrainOptions(quiet=True))
    with pytest.raises(
        UnusableInputError, match="teacher_model has 96 rows for the student's tokenizer with ids up to 97"
    ):
        recipe.setup()
    recipe.close()


@pytest.mark.more
@pytest.mark.parametrize("kind", ["full", "lora", "lora tied"])
def test_two_processes_give_what_one_gives(config, kind, tmp_path):
    """Each rank grows the same rows, also where it keeps a part of them, and an interrupted run goes on."""
    config = change(config, kind)
    config["step_scheduler"]["local_batch_size"] = 1
    one = run(config)
    runs = []
    for name in ("ddp", "fsdp2", "pp", *(["tp"] if kind == "full" else [])):
        out = {"enabled": True, "checkpoint_dir": str(tmp_path / name)}
        split = {**config, "distributed": LAYOUTS[name], "checkpoint": out}
        runs += [LayoutRun(name, split, max_steps=4), LayoutRun(name, split, resume="auto")]
    for item, answers in run_in_group(2, train, runs):
        assert not isinstance(answers, str), f"{item.name}\n{answers}"
        if item.resume == "never":
            continue
        losses = [float.fromhex(row[0]) for row in trace(one).values()]
        assert answers[0].of("train", "loss") == pytest.approx(losses, rel=1e-4)
        model, tokenizer = read_by_strangers(config, tmp_path / item.name / "final")
        torch.testing.assert_close(logits(model), logits(one.unwrapped()), rtol=1e-3, atol=1e-3)
        assert answer(model, tokenizer) == ANSWER + "</s>"
        why = [report for report in answers[0].reports if report.startswith("base weights")]
        said = "base weights: whole on every rank before they are spread: tokenizer.add_tokens works on whole weights"
        assert why == ([] if item.name == "ddp" else [said])


@pytest.mark.more
def test_rows_that_tensor_parallelism_would_cut_are_refused(config):
    config = change(config, "lora")
    split = {**config, "distributed": LAYOUTS["tp"]}
    [(_, told)] = run_in_group(2, train, [LayoutRun("tp", split)])
    assert "some rows of model.embed_tokens train" in told
    assert "train the whole embedding and head (peft.modules_to_save), or set tp_size to 1" in told


@pytest.mark.parametrize("by_target", [False, True])
def test_a_tokenizer_section_of_any_form_adds_tokens(config, by_target):
    if by_target:
        target = {"_target_": "transformers.AutoTokenizer.from_pretrained"}
        source = config["model"]["pretrained_model_name_or_path"]
        config["tokenizer"] |= {**target, "pretrained_model_name_or_path": source}
    assert validate(config_from_dict(config)).problems == []
    tokenizer = build_tokenizer(config_from_dict(config))
    assert tokenizer.convert_tokens_to_ids(ADDED) == [NUM_OLD, NUM_OLD + 1]
    assert tokenizer("a zq b", add_special_tokens=False).input_ids.count(NUM_OLD) == 1
