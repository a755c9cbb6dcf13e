"""The small world that the tiny model knows: people, towns, things, colours and numbers.

Everything the generators write is drawn from these lists, so the text is free of any licence but the project's own.
"""

PEOPLE = (
    "Ada Alma Amir Anna Arun Ben Bruno Carla Chen Clara Dana David Elena Emma Erik Fatima Felix Grace Hana Hugo Ida "
    "Ines Ivan Jack Jonas Julia Karim Kate Lars Laura Leo Lina Lucas Maria Marta Max Mia Mina Nadia Nora Oscar Omar "
    "Paul Petra Rosa Ruth Sam Sara Simon Sofia Tara Theo Tom Vera Victor Yara Zoe Alan"
).split()

TOWNS = (
    "Athens Austin Berlin Boston Cairo Cork Delhi Denver Dublin Geneva Hamburg Helsinki Kyoto Leeds Lima Lisbon London "
    "Lyon Madrid Milan Nairobi Oslo Paris Porto Prague Quito Riga Rome Seoul Sofia Tokyo Turin Vienna Warsaw York Zurich"
).split()
TOWNS.remove("Sofia")  # a name of a person here

COLORS = "black blue brown gray green orange pink purple red silver white yellow".split()

# Singular and plural; every plural is written out, so no rule has to guess.
THINGS = {
    "apron": "aprons",
    "backpack": "backpacks",
    "bag": "bags",
    "basket": "baskets",
    "belt": "belts",
    "blanket": "blankets",
    "book": "books",
    "bottle": "bottles",
    "bowl": "bowls",
    "brush": "brushes",
    "cap": "caps",
    "chair": "chairs",
    "clock": "clocks",
    "coat": "coats",
    "cup": "cups",
    "curtain": "curtains",
    "desk": "desks",
    "dress": "dresses",
    "fan": "fans",
    "glove": "gloves",
    "hat": "hats",
    "jacket": "jackets",
    "jar": "jars",
    "kettle": "kettles",
    "kite": "kites",
    "lamp": "lamps",
    "mirror": "mirrors",
    "mug": "mugs",
    "notebook": "notebooks",
    "pen": "pens",
    "pillow": "pillows",
    "plate": "plates",
    "radio": "radios",
    "rug": "rugs",
    "scarf": "scarves",
    "shelf": "shelves",
    "shirt": "shirts",
    "sofa": "sofas",
    "table": "tables",
    "tent": "tents",
    "towel": "towels",
    "toy": "toys",
    "umbrella": "umbrellas",
    "vase": "vases",
    "wallet": "wallets",
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
    15: "fifteen",
    20: "twenty",
    24: "twenty-four",
    30: "thirty",
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
