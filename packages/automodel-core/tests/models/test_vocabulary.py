"""Tokens are added to a tokenizer, and each gets a row at the mean of the older ones."""

import pytest
import torch
import transformers
from core_families import FAMILIES, build
from tokenizers import Tokenizer, models, pre_tokenizers

from automodel_core import NeMoAutoModelForCausalLM
from automodel_core.models import add_token_rows, extend_tokenizer


@pytest.fixture
def tokenizer():
    words = {"<pad>": 0, "<old>": 1, "a": 2, "b": 3}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": ["<old>"]})
    return made


def test_added_tokens_are_whole_and_special_ones_are_left_out_of_text(tokenizer, tmp_path):
    assert extend_tokenizer(tokenizer, add_tokens=["word"], add_special_tokens=["<|x|>"]) == [4, 5]
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        ids = one("a word <|x|> b <old>").input_ids
        assert ids == [2, 4, 5, 3, 1]
        assert one.decode(ids, skip_special_tokens=True).split() == ["a", "word", "b"]
        assert {"<old>", "<|x|>"} <= set(one.all_special_tokens)
        assert "word" not in one.all_special_tokens


@pytest.mark.parametrize(
    "tokens, told",
    [
        ({"add_tokens": ["a"]}, "name 'a', which the tokenizer knows as 2"),
        ({"add_special_tokens": ["<old>"]}, "name '<old>', which the tokenizer knows as 1"),
        ({"add_tokens": ["new"], "add_special_tokens": ["new"]}, "name 'new' twice"),
        ({"add_tokens": ["new", "  "]}, "hold '  ': each is a text"),
    ],
)
def test_what_is_no_new_token_is_refused_and_nothing_is_added(tokenizer, tokens, told):
    with pytest.raises(ValueError, match=told):
        extend_tokenizer(tokenizer, **tokens)
    assert len(tokenizer) == 4


def test_a_token_around_another_one_is_found_as_written(tokenizer):
    """Added tokens of the tokenizer itself are looked for first, unless ours are as exact."""
    (number,) = extend_tokenizer(tokenizer, add_tokens=["b<old>b"])
    assert tokenizer("a b<old>b <old>").input_ids == [2, number, 1]


def test_a_token_that_the_tokenizer_cuts_even_so_is_refused(tokenizer):
    tokenizer.split_special_tokens = True
    with pytest.raises(ValueError, match=r"'<|x|>', which the tokenizer cuts into .* even so: the model would never"):
        extend_tokenizer(tokenizer, add_special_tokens=["<|x|>"])


def weights(model):
    head = model.get_output_embeddings()
    return [model.get_input_embeddings().weight, head.weight, *([head.bias] if head.bias is not None else [])]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_start_at_the_mean_and_the_old_ones_stay(family, tied):
    model = build(family, tie_word_embeddings=tied)
    before = [tensor.detach().clone() for tensor in weights(model)]
    add_token_rows(model, [97, 98])
    assert model.config.vocab_size == 99
    for old, new in zip(before, weights(model), strict=True):
        assert torch.equal(new[:97], old)
        torch.testing.assert_close(new[97:], old.mean(0).expand_as(new[97:]))
    embedding, head = weights(model)[:2]
    assert (embedding is head) == model.config.tie_word_embeddings
    logits = model(input_ids=torch.tensor([[5, 97, 98]])).logits
    assert logits.shape[-1] == 99
    torch.testing.assert_close(logits[..., 97], logits[..., 98])


def test_a_head_with_a_bias_gets_a_mean_bias():
    config = transformers.AutoConfig.for_model(
        "phi", vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = NeMoAutoModelForCausalLM.from_config(config)
    bias = model.get_output_embeddings().bias
    torch.nn.init.normal_(bias)
    mean = bias.detach().mean()
    add_token_rows(model, [20])
    torch.testing.assert_close(model.get_output_embeddings().bias[20], mean)


def test_a_padded_embedding_has_room_and_its_padding_does_not_count():
    model = build("llama")
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        rows[90:] = 1e6
    mean, untouched = rows[:90].detach().mean(0), rows[92:].detach().clone()
    add_token_rows(model, [90, 91])
    assert model.config.vocab_size == rows.shape[0] == 97
    torch.testing.assert_close(rows[90:92], mean.expand(2, -1))
    assert torch.equal(rows[92:], untouched)


def test_a_model_without_storage_grows_without_values():
    model = NeMoAutoModelForCausalLM.from_config(build("llama").config, materialize=False)
    add_token_rows(model, [97])
    assert model.get_input_embeddings().weight.shape[0] == 98
    assert model.get_input_embeddings().weight.device.type == "meta"


def test_codes_are_refused():
    model = build("llama", tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(100, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="codes hold no mean"):
        add_token_rows(model, [90])
