import json

import pytest
import torch
import transformers
from core_families import FAMILIES, build, config
from safetensors.torch import load_file, save_file

from automodel_core import (
    NeMoAutoModelForCausalLM,
    NeMoAutoModelForImageTextToText,
    NeMoAutoModelForSequenceClassification,
)
from automodel_core.models import WeightSource, apply_freezing, check_tokenizer, materialize, resize_vocabulary


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(path)
    return path


def test_a_local_directory_gives_transformers_logits(saved, batch):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    ours = NeMoAutoModelForCausalLM.from_pretrained(saved)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert ours.training
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_meta_then_storage_then_load_is_the_same_model(family, tied, batch):
    model = build(family, tie_word_embeddings=tied)
    meta = NeMoAutoModelForCausalLM.from_config(model.config, attn_implementation="eager", materialize=False)
    assert all(p.is_meta for p in meta.parameters())
    materialize(meta, device="cpu")
    meta.load_state_dict(model.state_dict())
    buffers = dict(meta.named_buffers())
    assert set(buffers) == set(dict(model.named_buffers()))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    meta.eval()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(meta(**inputs).logits, model(**inputs).logits)
    embedding, head = meta.get_input_embeddings().weight, meta.get_output_embeddings().weight
    assert (embedding is head) == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)


def test_a_meta_model_says_where_its_weights_lie(saved):
    model = NeMoAutoModelForCausalLM.from_pretrained(saved, materialize=False)
    assert model.weight_source == WeightSource(str(saved))
    assert all(p.is_meta for p in model.parameters())


def test_both_names_of_dtype(saved):
    for keys in ({"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}, {"dtype": "bf16", "torch_dtype": "bfloat16"}):
        assert NeMoAutoModelForCausalLM.from_pretrained(saved, **keys).lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="they are one setting"):
        NeMoAutoModelForCausalLM.from_pretrained(saved, dtype="float32", torch_dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype='int8'"):
        NeMoAutoModelForCausalLM.from_pretrained(saved, dtype="int8")


def test_attention_falls_back_before_loading_or_refuses(saved, caplog):
    model = NeMoAutoModelForCausalLM.from_pretrained(saved, attn_implementation="flash_attention_2")
    assert model.config._attn_implementation == "sdpa"
    assert "sdpa instead of flash_attention_2" in caplog.text
    with pytest.raises(ValueError, match="flash_attention_2' cannot run"):
        NeMoAutoModelForCausalLM.from_pretrained(saved, attn_implementation="flash_attention_2", strict=True)
    assert NeMoAutoModelForCausalLM.from_pretrained(saved).config._attn_implementation == "sdpa"


def test_sdpa_backends_are_pinned(saved, batch):
    model = NeMoAutoModelForCausalLM.from_pretrained(saved, sdpa_method=["MATH"])
    plain = NeMoAutoModelForCausalLM.from_pretrained(saved)
    torch.testing.assert_close(model(batch["input_ids"]).logits, plain(batch["input_ids"]).logits)
    with pytest.raises(ValueError, match="sdpa_method 'QUICK'"):
        NeMoAutoModelForCausalLM.from_pretrained(saved, sdpa_method=["QUICK"])
    with pytest.raises(ValueError, match="with eager attention"):
        NeMoAutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager", sdpa_method=["MATH"])


@pytest.mark.parametrize("change, said", [
    (lambda t: t.pop("model.norm.weight"), "1 missing: model.norm.weight"),
    (lambda t: t.update({"model.extra.weight": torch.zeros(2)}), "1 unexpected: model.extra.weight"),
])  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(saved, tmp_path, change, said):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(ValueError, match=said):
        NeMoAutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_classifier_takes_a_language_models_body(saved):
    model = NeMoAutoModelForSequenceClassification.from_pretrained(saved, num_labels=3)
    assert model.score.weight.shape == (3, 32)
    assert torch.equal(model.model.norm.weight, NeMoAutoModelForCausalLM.from_pretrained(saved).model.norm.weight)


@pytest.mark.parametrize("materialize", [True, False])
def test_fields_of_the_config_can_be_given_beside_it(materialize):
    given = config("llama")
    keys = {"num_labels": 5, "rms_norm_eps": 1e-3, "materialize": materialize}
    model = NeMoAutoModelForSequenceClassification.from_config(given, **keys)
    assert model.score.out_features == len(model.config.id2label) == 5
    assert model.config.rms_norm_eps == 1e-3
    assert given.num_labels == 2
    with pytest.raises(TypeError, match="num_heads_of_hair"):
        NeMoAutoModelForSequenceClassification.from_config(given, num_heads_of_hair=1)


def test_configs_of_every_kind(saved):
    as_dict = json.loads((saved / "config.json").read_text())
    for given in (config("llama"), str(saved), as_dict):
        assert NeMoAutoModelForCausalLM.from_config(given).config.hidden_size == 32
    with pytest.raises(ValueError, match="it needs model_type"):
        NeMoAutoModelForCausalLM.from_config({"hidden_size": 32})
    with pytest.raises(ValueError, match="AutoModelForImageTextToText"):
        NeMoAutoModelForImageTextToText.from_config(config("llama"))
    with pytest.raises(ValueError, match="does not exist"):
        NeMoAutoModelForCausalLM.from_pretrained("./no/such/dir")


@pytest.fixture
def llava():
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 32}  # fmt: skip
    text = config("llama").to_dict()
    return NeMoAutoModelForImageTextToText.from_config(
        {"model_type": "llava", "vision_config": vision, "text_config": text, "image_token_index": 5}
    )


def test_freezing_touches_what_it_names_and_nothing_else(llava):
    report = apply_freezing(llava, freeze_vision_tower=True, freeze_embeddings=True)
    frozen = {name for name, p in llava.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("vision_tower" in name or "embed" in name for name in frozen)
    assert any("multi_modal_projector" in name and p.requires_grad for name, p in llava.named_parameters())
    assert report.num_trainable == sum(p.numel() for p in llava.parameters() if p.requires_grad)
    apply_freezing(llava, freeze_modules=["*.layers.*"], unfreeze_modules=["*.layers.1.*"])
    assert {
        name.split("layers.")[1][0] for name, p in llava.named_parameters() if "layers." in name and p.requires_grad
    } == {"1"}


def test_freezing_nothing_or_everything_is_refused(llama):
    with pytest.raises(ValueError, match="freeze_vision_tower matches no module of LlamaForCausalLM"):
        apply_freezing(llama, freeze_vision_tower=True)
    with pytest.raises(ValueError, match="freeze the whole model"):
        apply_freezing(llama, freeze_modules=["model", "lm_head"])


class Tokenizer:
    def __init__(self, size):
        self.size = size

    def get_vocab(self):
        return {str(i): i for i in range(self.size)}


def test_a_tokenizer_needs_a_row_for_every_id(llama):
    check_tokenizer(llama, Tokenizer(97))
    check_tokenizer(llama, Tokenizer(50))
    with pytest.raises(ValueError, match="ids up to 97 for an embedding of 97 rows"):
        check_tokenizer(llama, Tokenizer(98))
    padded = build("llama", vocab_size=2000)
    check_tokenizer(padded, Tokenizer(2000 - 1024))
    with pytest.raises(ValueError, match="1025 rows would never be used, which is no padding"):
        check_tokenizer(padded, Tokenizer(2000 - 1025))
    old = llama.get_input_embeddings().weight.detach().clone()
    resize_vocabulary(llama, Tokenizer(99), multiple=8)
    assert llama.get_input_embeddings().weight.shape[0] == llama.get_output_embeddings().weight.shape[0] == 104
    assert torch.equal(llama.get_input_embeddings().weight[:97], old)
    with pytest.raises(ValueError, match="nothing to add"):
        resize_vocabulary(llama, Tokenizer(50))


def test_liger_is_applied_or_refused(saved, batch):
    pytest.importorskip("liger_kernel", reason="the optional extra 'liger' is not installed")
    model = NeMoAutoModelForCausalLM.from_pretrained(saved, use_liger_kernel=True)
    assert (
        "Liger" in repr(model.model.norm)
        or "liger" in type(model.model.norm).forward.__module__
        or ("liger" in model.model.norm.forward.__func__.__module__)
    )
    with pytest.raises(ValueError, match="liger-kernel patches"):
        NeMoAutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2), use_liger_kernel=True
        )


def test_liger_on_one_model_leaves_the_others_alone(saved, batch):
    pytest.importorskip("liger_kernel", reason="the optional extra 'liger' is not installed")
    from transformers.models.llama import modeling_llama

    names = ("LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb")
    before = [getattr(modeling_llama, name) for name in names]
    plain = NeMoAutoModelForCausalLM.from_pretrained(saved)(**batch).loss
    NeMoAutoModelForCausalLM.from_pretrained(saved, use_liger_kernel=True)
    assert [getattr(modeling_llama, name) for name in names] == before
    assert torch.equal(NeMoAutoModelForCausalLM.from_pretrained(saved)(**batch).loss, plain)
