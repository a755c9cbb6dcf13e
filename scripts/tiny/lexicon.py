"""The small world that the tiny model knows: people, towns, things, colours and numbers.

Everything the generators write is drawn from these lists, so the text is free of any licence but the project's own.
"""

PEOPLE = (
    "Ada Amir Anna Ben Carla Chen Clara David Elena Emma Felix Grace Hana Hugo Ivan Julia Karim Leo Maria Nora Oscar "
    "Paul Ruth Tom"
).split()

TOWNS = (
    "Athens Berlin Boston Cairo Delhi Denver Dublin Geneva Kyoto Lima Lisbon London Lyon Madrid Milan Oslo Paris "
    "Prague Riga Rome Seoul Tokyo Vienna Warsaw"
).split()

COLORS = "black blue brown gray green pink red white".split()

# Singular and plural; every plural is written out, so no rule has to guess.
THINGS = {
    "bag": "bags",
    "basket": "baskets",
    "book": "books",
    "bottle": "bottles",
    "bowl": "bowls",
    "brush": "brushes",
    "chair": "chairs",
    "clock": "clocks",
    "coat": "coats",
    "cup": "cups",
    "dress": "dresses",
    "hat": "hats",
    "jar": "jars",
    "kite": "kites",
    "lamp": "lamps",
    "mirror": "mirrors",
    "mug": "mugs",
    "pen": "pens",
    "plate": "plates",
    "scarf": "scarves",
    "shirt": "shirts",
    "table": "tables",
    "tent": "tents",
    "watch": "watches",
}

NUMBERS = {
    1: "one",
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "six",
    7: "seven",
    8: "eight",
    9: "nine",
    10: "ten",
    11: "eleven",
    12: "twelve",
}

ANIMALS = "bird cat dog duck fish fox goat horse mouse rabbit sheep turtle".split()
FOODS = "bread cake cheese honey rice salad soup tea".split()
PLACES = "beach bridge forest garden kitchen library market museum office park river school station street".split()
VERBS = "bought carried cleaned drew dropped found hid kept lost made moved opened painted saw sold washed".split()
FEELINGS = "angry bored calm glad happy hungry proud sad sleepy tired".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WEATHER = "cloudy cold dry foggy hot rainy snowy sunny warm windy".split()

# Keys of the JSON records in the pretraining text. Those of an order appear among them, never as an order's set.
RECORD_KEYS = (
    "age animal city color count day food id item name owner place price quantity status title weather".split()
)


def count_noun(thing, count):
    """``thing`` in the form that agrees with ``count``: "mug" for 1, else "mugs"."""
    return thing if count == 1 else THINGS[thing]


def article(word):
    """ "an" before a vowel letter, else "a"."""
    return "an" if word[0] in "aeiou" else "a"
