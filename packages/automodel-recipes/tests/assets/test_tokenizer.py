"""The tiny tokenizer loses nothing, and its chat template marks what an assistant says."""

CHAT = [{"role": "user", "content": "Two red mugs."}, {"role": "assistant", "content": '{"item": "mug"}'}]


def test_any_text_comes_back(tokenizer):
    for text in ("Nora has 3 mugs.", '{"a": [1, 2]}\n', "  two  spaces ", "\u00e9\u00df\u4e2d \U0001f600"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_prompt_is_a_prefix_of_the_whole_chat(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert whole == prompt + CHAT[1]["content"] + tokenizer.eos_token + "\n"


def test_the_template_marks_the_answer_and_its_end(tokenizer):
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"]) if mark]
    assert tokenizer.decode(marked) == CHAT[1]["content"] + tokenizer.eos_token


def test_pretraining_text_shows_chats_as_the_template_renders_them(tokenizer, script):
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert script("tiny.corpus").chat(CHAT[0]["content"], CHAT[1]["content"]) == rendered


def test_words_of_the_task_are_single_tokens(tokenizer, script):
    lexicon = script("tiny.lexicon")
    words = [*lexicon.PEOPLE, *lexicon.TOWNS, *lexicon.COLORS, *lexicon.THINGS]
    assert [word for word in words if word not in tokenizer.tokenize(f"for {word}.")] == []


def test_tokenizer_is_that_of_the_seeded_script(tokenizer, script):
    make = script("make_tiny_assets")
    corpus = script("tiny.corpus")
    texts = corpus.documents(make.CORPUS_SEED, make.NUM_TOKENIZER_DOCUMENTS)
    trained = script("tiny.tokenizer").train_tokenizer(texts, make.VOCAB_SIZE, corpus.FIELD_KEYS)
    assert trained.get_vocab() == tokenizer.get_vocab()
    assert trained.chat_template == tokenizer.chat_template
