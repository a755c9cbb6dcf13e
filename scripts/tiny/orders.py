"""The demo's task: a free-text order becomes one line of JSON.

Training and held-out rows share words, never combinations: a held-out order joins a person with a town and a thing with
a colour that no training order joins, so neither its text nor its answer can have been learnt by heart.
"""

import json
import random

from tiny.lexicon import COLORS, NUMBERS, PEOPLE, THINGS, TOWNS, article, count_noun

# {n} is the count with its noun phrase, {name} and {city} the customer.
REQUESTS = (
    "Please send {n} to {name} in {city}.",
    "{name} from {city} would like {n}.",
    "I need {n}. My name is {name} and I live in {city}.",
    "Hello, this is {name} from {city}. Can I get {n}?",
    "Order for {name}: {n}, shipped to {city}.",
    "Could you ship {n} to {city}? The name is {name}.",
    "Hi! {n} for {name}, please. The address is in {city}.",
    "In {city}, {name} is waiting for {n}.",
    "We want {n} delivered to {name}, {city}.",
    "To {city}, please: {n}. It is a gift for {name}.",
    "{name} here. Put me down for {n}; I am in {city}.",
    "Good morning, {name} in {city} has ordered {n}.",
    "My friend {name} moved to {city} and wants {n}.",
    "Ship to {name}, {city}: {n}. Thank you!",
)
HELD_OUT_SHARE = 0.15


def split_pairs(left, right, rng):
    """Splits all pairs of two lists into (training, held-out) lists; every word stays in both."""
    pairs = [(a, b) for a in left for b in right]
    rng.shuffle(pairs)
    cut = round(len(pairs) * HELD_OUT_SHARE)
    return pairs[cut:], pairs[:cut]


def noun_phrase(item, color, quantity, rng):
    """ "three blue mugs", "3 blue mugs", "3 mugs in blue", "a blue mug"."""
    noun = count_noun(item, quantity)
    color_first = rng.random() < 0.7
    counts = [str(quantity), NUMBERS[quantity]]
    if quantity == 1:
        counts.append(article(color if color_first else noun))
    if quantity == 12 and color_first:
        counts.append("a dozen")
    count = rng.choice(counts)
    return f"{count} {color} {noun}" if color_first else f"{count} {noun} in {color}"


def make_order(customers, goods, rng):
    """One order as (text, answer); the answer is compact JSON with a fixed order of keys."""
    name, city = rng.choice(customers)
    item, color = rng.choice(goods)
    quantity = rng.choice(list(NUMBERS))
    phrase = noun_phrase(item, color, quantity, rng)
    text = rng.choice(REQUESTS).format(n=phrase, name=name, city=city)
    answer = {"item": item, "color": color, "quantity": quantity, "name": name, "city": city}
    return text[0].upper() + text[1:], json.dumps(answer)


def make_orders(count, customers, goods, rng):
    """``count`` orders with distinct texts and distinct answers."""
    orders, texts, answers = [], set(), set()
    while len(orders) < count:
        text, answer = make_order(customers, goods, rng)
        if text not in texts and answer not in answers:
            texts.add(text)
            answers.add(answer)
            orders.append((text, answer))
    return orders


def chat_row(text, answer):
    """An order as a row of chat data."""
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def make_split(num_train, num_heldout, seed):
    """(training rows, held-out rows), the same for the same arguments."""
    rng = random.Random(seed)
    train_customers, heldout_customers = split_pairs(PEOPLE, TOWNS, rng)
    train_goods, heldout_goods = split_pairs(list(THINGS), COLORS, rng)
    train = make_orders(num_train, train_customers, train_goods, rng)
    heldout = make_orders(num_heldout, heldout_customers, heldout_goods, rng)
    return [chat_row(*order) for order in train], [chat_row(*order) for order in heldout]


def shuffle_answers(rows, seed):
    """The same questions with the answers dealt out at random: the control that must not be learnable."""
    answers = [row["messages"][-1]["content"] for row in rows]
    random.Random(seed).shuffle(answers)
    return [chat_row(row["messages"][0]["content"], answer) for row, answer in zip(rows, answers)]
