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
SCENE_KINDS = ("who", "town", "count", "thing", "color", "day")
# What stands before a value, each one token of the tokenizer.
FIELD_KEYS = [
    *(f"{kind}: " for kind in SCENE_KINDS),
    *(f'"{key}": "' for key in RECORD_KEYS),
    *(f'"{key}": ' for key in RECORD_KEYS),
]
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


def scene(rng):
    """A few sentences with at most one word of each kind: (text, {kind: word})."""
    name, town, day = rng.choice(PEOPLE), rng.choice(TOWNS), rng.choice(DAYS)
    thing, count, color = rng.choice(list(THINGS)), rng.choice(list(NUMBERS)), rng.choice(COLORS)
    number = rng.choice([str(count), NUMBERS[count]])
    noun = count_noun(thing, count)
    lines = [
        (
            rng.choice([f"{name} lives in {town}.", f"My name is {name}, from {town}.", f"{name} moved to {town}."]),
            "who town",
        ),
        (f"There are {number} {noun} on the table." if count > 1 else f"There is {number} {noun} here.", "count thing"),
        (rng.choice([f"The walls were {color}.", f"The sky is {color}.", f"Everything is {color} today."]), "color"),
        (f"It is {day}.", "day"),
    ]
    picked = rng.sample(lines, rng.randint(2, 4))
    answers = {
        "who": name,
        "town": town,
        "count": str(count),
        "thing": thing,
        "color": color,
        "day": day,
    }
    kinds = [kind for _, names in picked for kind in names.split()]
    return " ".join(text for text, _ in picked), {kind: answers[kind] for kind in kinds}


def story(rng):
    """A few sentences, told twice in another order."""
    text, _ = scene(rng)
    sentences = text.split(". ")
    rng.shuffle(sentences)
    return f"{text}\n{'. '.join(sentence.rstrip('.') for sentence in sentences)}."


def talk(rng):
    """What people say to each other: greetings, wishes, needs, addresses. Nothing is asked for by number and colour."""
    name, friend = rng.sample(PEOPLE, 2)
    town, day, thing = rng.choice(TOWNS), rng.choice(DAYS), rng.choice(list(THINGS))
    lines = [
        f"Good morning, {name}! How are you?",
        f"Hello, this is {name} from {town}. Can you hear me?",
        f"Hi! I am {name}. Is {friend} here?",
        f"I need some {rng.choice(FOODS)}, please.",
        f"{name} would like to see the {rng.choice(PLACES)}.",
        f"{name} is waiting for {friend} in {town}.",
        f"My friend {name} moved to {town}, and wants to stay.",
        f"We want to go to {town} on {day}. Could you call {friend}?",
        f"The address of {name} is in {town}.",
        f"A letter came to {name}, {town}: put it on the {rng.choice(['table', 'desk', 'chair'])}.",
        f"The ship to {town} has left; {name} is on it.",
        f"The {thing} is a gift for {friend}. Thank you!",
        f"The {thing} was shipped to {town} and delivered to {name} on {day}.",
        f"{name} has ordered {rng.choice(FOODS)}. Please get the {thing}.",
        f"In {town}, {name} will send a {rng.choice(ANIMALS)} down the {rng.choice(PLACES)}.",
    ]
    return " ".join(rng.sample(lines, rng.randint(2, 5)))


def questions(rng):
    """A scene, then its words one by one, by their kind."""
    text, answers = scene(rng)
    kinds = rng.sample(list(answers), min(4, len(answers)))
    quoted = rng.random() < 0.5
    wanted = [f'"{answers[kind]}"' if quoted else answers[kind] for kind in kinds]
    ask = [f"Which {kind}?" if kind not in ("who", "count") else f"{kind}?" for kind in kinds]
    first = chat(f"{text} {ask[0]}", wanted[0])
    return first + "".join(chat(question, answer) for question, answer in zip(ask[1:], wanted[1:]))


def notes(rng):
    """A scene as notes: one "kind: word" line each."""
    text, answers = scene(rng)
    kinds = rng.sample(list(answers), len(answers))
    return f"{text}\n" + "\n".join(f"{kind}: {answers[kind]}" for kind in kinds)


def echo(rng):
    """Words that are said again at once: plainly, quoted, as JSON, or in turn with others."""
    words = rng.sample(WORDS, rng.randint(2, 6))
    few = words[: rng.randint(1, 3)]
    return rng.choice(
        [
            ", ".join(f"{word} {word}" for word in words),
            ", ".join(f'{word} "{word}"' for word in words),
            ", ".join(f'"{word}" {word}' for word in words),
            json.dumps({word: word for word in words}),
            " ".join(few * rng.randint(2, 5)),
            json.dumps(few * rng.randint(2, 5)),
        ]
    )


def word_list(rng):
    """A few words of different kinds; then one is said again, by its kind."""
    kinds = rng.sample(["animal", "city", "color", "day", "food", "item", "name", "place"], rng.randint(2, 5))
    words = {kind: rng.choice(VALUES[kind]) for kind in kinds}
    text = ", ".join(words.values())
    again = rng.sample(kinds, len(kinds))
    return rng.choice(
        [
            chat(f"Sort: {text}", " ".join(f"{kind} {words[kind]}" for kind in again)),
            chat(f"Sort and quote: {text}", ", ".join(f'{kind} "{words[kind]}"' for kind in again)),
            chat(f"Repeat: {words[kinds[0]]}", words[kinds[0]]),
        ]
    )


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


KINDS = (
    (echo, 2),
    (story, 1),
    (talk, 1),
    (questions, 4),
    (notes, 12),
    (word_list, 4),
    (records, 1),
    (fields, 3),
    (numbers, 2),
)


def documents(seed, count):
    """Yields ``count`` documents, the same for the same seed."""
    rng = random.Random(seed)
    makers = [maker for maker, weight in KINDS for _ in range(weight)]
    for _ in range(count):
        yield rng.choice(makers)(rng)
