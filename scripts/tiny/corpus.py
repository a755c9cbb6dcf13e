"""The pretraining text: short documents about the lexicon's world.

It teaches English-like sentences, numbers, JSON, copying and the shape of a chat. It holds no order and no turning of
a sentence into JSON: that is left to fine-tuning.
"""

import json
import random

from tiny.lexicon import (
    ANIMALS,
    COLORS,
    DAYS,
    FEELINGS,
    FOODS,
    NUMBERS,
    PEOPLE,
    PLACES,
    RECORD_KEYS,
    THINGS,
    TOWNS,
    VERBS,
    WEATHER,
    article,
    count_noun,
)

VALUES = {
    "animal": ANIMALS,
    "city": TOWNS,
    "color": COLORS,
    "day": DAYS,
    "food": FOODS,
    "item": list(THINGS),
    "name": PEOPLE,
    "owner": PEOPLE,
    "place": PLACES,
    "status": FEELINGS,
    "title": list(THINGS),
    "weather": WEATHER,
}
WORDS = [*PEOPLE, *TOWNS, *COLORS, *THINGS, *THINGS.values(), *NUMBERS.values(), *ANIMALS, *FOODS, *PLACES, *VERBS]
USER, ASSISTANT, END = "<|user|>\n", "<|assistant|>\n", "<|end|>\n"


def chat(question, answer):
    """One exchange, rendered as the chat template does."""
    return f"{USER}{question}{END}{ASSISTANT}{answer}{END}"


def record_value(key, rng):
    """A value for a record's key: a word where the key has words, else a number."""
    if key in VALUES:
        return rng.choice(VALUES[key])
    return rng.choice(list(NUMBERS)) if rng.random() < 0.8 else rng.randint(0, 99)


def random_record(rng):
    """A record of two to five random keys. The five keys of an order never come together."""
    while True:
        keys = rng.sample(RECORD_KEYS, rng.randint(2, 5))
        if not {"item", "quantity"} <= set(keys):
            return {key: record_value(key, rng) for key in keys}


def counted(rng):
    """A counted, coloured thing, "four red hats" or "4 hats", as (phrase, count, colour, thing)."""
    thing, count, color = rng.choice(list(THINGS)), rng.choice(list(NUMBERS)), rng.choice(COLORS)
    number = rng.choice([str(count), NUMBERS[count]])
    return f"{number} {color} {count_noun(thing, count)}", count, color, thing


def story(rng):
    """A few sentences about one person in one town, whose name, town and things come back."""
    name, friend = rng.sample(PEOPLE, 2)
    town, place, day = rng.choice(TOWNS), rng.choice(PLACES), rng.choice(DAYS)
    phrase, _, color, thing = counted(rng)
    noun = THINGS[thing]
    lines = [
        f"{name} lives in {town}.",
        f"On {day}, {name} went to the {place} in {town}.",
        f"{name} {rng.choice(VERBS)} {phrase}.",
        f'"I like {color} {noun}," said {name}.',
        f"{friend} {rng.choice(VERBS)} the {noun} of {name}.",
        f"It was {rng.choice(WEATHER)} in {town}, and {name} was {rng.choice(FEELINGS)}.",
        f"{friend} gave {name} some {rng.choice(FOODS)} and {article(color)} {color} {thing}.",
        f"{name} and {friend} saw a {rng.choice(ANIMALS)} near the {place}.",
        f"My name is {name}. I come from {town}.",
        f"Thank you, {friend}! Please say hello to {name}.",
    ]
    return " ".join(rng.sample(lines, rng.randint(3, 6)))


def questions(rng):
    """A short text, then questions that one of its words answers."""
    name, friend = rng.sample(PEOPLE, 2)
    town, other = rng.sample(TOWNS, 2)
    phrase, count, color, thing = counted(rng)
    noun = count_noun(thing, count)
    facts = [f"{name} lives in {town}.", f"{friend} lives in {other}.", f"{name} {rng.choice(VERBS)} {phrase}."]
    rng.shuffle(facts)
    asked = [
        (f"Who lives in {town}?", name),
        (f"Where does {friend} live?", other),
        (f"Where does {name} live?", town),
        (f"What color: the {noun}?", color),
        ("How many?", str(count)),
        (f"What does {name} have?", noun),
        ("One of them is called what?", thing),
    ]
    picked = rng.sample(asked, 2)
    turns = [chat(" ".join([*facts, picked[0][0]]), picked[0][1]), chat(*picked[1])]
    return "".join(turns)


def repeat_after_me(rng):
    """The user says random words; the assistant says them again, plainly, quoted, or as a JSON list."""
    words = rng.sample(WORDS, rng.randint(2, 7))
    plain = " ".join(words)
    question, answer = rng.choice(
        [
            (f"Repeat: {plain}", plain),
            (f"Quote: {plain}", f'"{plain}"'),
            (f"List: {plain}", json.dumps(words)),
            (f"First word: {plain}", words[0]),
            (f"Last word: {plain}", words[-1]),
            (f"Word after {words[0]}: {plain}", words[1]),
        ]
    )
    return chat(question, answer)


def word_run(rng):
    """Random words, said twice: what a model learns to copy from."""
    words = rng.sample(WORDS, rng.randint(4, 12))
    line = " ".join(words)
    return rng.choice([f"{line}. {line}.", f"{line}\n{json.dumps(words)}", f"{json.dumps(words)}\n{line}"])


def records(rng):
    """JSON records, one a line, some of them come back with their keys in another order."""
    record = random_record(rng)
    keys = list(record)
    rng.shuffle(keys)
    again = {key: record[key] for key in keys}
    return "\n".join([json.dumps(record), json.dumps(again), json.dumps(random_record(rng))])


def fields(rng):
    """ "key: value" lines and the same as JSON."""
    record = random_record(rng)
    lines = "\n".join(f"{key}: {value}" for key, value in record.items())
    key = rng.choice(list(record))
    return rng.choice(
        [
            chat(f"As JSON:\n{lines}", json.dumps(record)),
            chat(f"As lines: {json.dumps(record)}", lines),
            chat(f"{json.dumps(record)}\nWhat is the {key}?", str(record[key])),
        ]
    )


def numbers(rng):
    """Number words and figures, and things in singular and plural."""
    count, thing = rng.choice(list(NUMBERS)), rng.choice(list(THINGS))
    word = NUMBERS[count]
    lines = [
        f"{word} is {count}, {count} is {word}.",
        f"{count} {count_noun(thing, count)} are {word} {count_noun(thing, count)}.",
        f"One {thing}, two {THINGS[thing]}.",
        chat(f"{word} in figures", str(count)),
        chat(f"The singular of {THINGS[thing]}?", thing),
        chat(f"One of the {THINGS[thing]}, quoted?", f'"{thing}"'),
        "a dozen is twelve, 12 is a dozen.",
    ]
    return "\n".join(rng.sample(lines, 3))


KINDS = ((story, 2), (questions, 4), (repeat_after_me, 3), (word_run, 3), (records, 2), (fields, 3), (numbers, 2))


def documents(seed, count):
    """Yields ``count`` documents, the same for the same seed."""
    rng = random.Random(seed)
    makers = [maker for maker, weight in KINDS for _ in range(weight)]
    for _ in range(count):
        yield rng.choice(makers)(rng)
