"""Makes what the vision-language demo ships: receipts as images with questions, and a tiny processor and model shape.

    python scripts/make_receipts.py rows         the data
    python scripts/make_receipts.py processor    what is shipped already
    python scripts/make_receipts.py sheet        after training: held-out pictures with the model's answers

Each step is seeded: the same command gives the same pictures and the same tokenizer. Held-out receipts share words and
digits with the training ones, never a whole receipt.
"""

import argparse
import base64
import io
import json
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "packages/automodel-recipes/src/automodel_recipes/assets"
ROWS = ROOT / "runs/receipts"
SEED, NUM_TRAIN, NUM_HELDOUT = 11, 6000, 200
NUM_LOOSE = 4  # held-out pictures that are written as files too, to ask about
SHOPS = ["BAKERY", "BOOKS", "CAFE", "GARDEN", "MARKET", "PIZZA", "TOYS", "WINE"]
ITEMS = ["CAKE", "LAMP", "MILK", "NUTS", "PEN", "ROSE", "SOAP", "TEA"]
KEYS = ['{"shop": "', '", "item": "', '", "count": ', ', "total": "', '"}']  # one token each
QUESTION = "Read the receipt."
SIDE, PATCH = 72, 12
MODEL = {
    "text_config": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": 128,
        "initializer_range": 0.1,
    },
}
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_receipt(rng):
    """One receipt's fields."""
    total = f"{rng.randint(1, 99)}.{rng.randint(0, 9)}0"
    return {"shop": rng.choice(SHOPS), "item": rng.choice(ITEMS), "count": rng.randint(1, 9), "total": total}


def draw(receipt, rng):
    """The receipt as a grey picture, one character to a cell, with jitter in place and ink, and noise; PNG bytes."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (SIDE, SIDE), rng.randint(225, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default_imagefont()
    ink = rng.randint(0, 60)
    lines = [receipt["shop"], f"{receipt['count']} {receipt['item']}", "TOTAL", receipt["total"]]
    for row, line in enumerate(lines, start=1):
        for column, character in enumerate(line):
            at = (PATCH * column + 3 + rng.randint(-1, 1), PATCH * row + rng.randint(-1, 1))
            pen.text(at, character, fill=ink, font=font)
    for _ in range(20):
        image.putpixel((rng.randrange(SIDE), rng.randrange(SIDE)), rng.randint(100, 220))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def make_rows():
    """Training and held-out rows as JSON lines with the picture inside: two files are all that training needs."""
    rng, seen = random.Random(SEED), set()
    for name, count in (("train", NUM_TRAIN), ("heldout", NUM_HELDOUT)):
        path = ROWS / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            for number in range(count):
                receipt = make_receipt(rng)
                while json.dumps(receipt) in seen:
                    receipt = make_receipt(rng)
                seen.add(json.dumps(receipt))
                png = draw(receipt, rng)
                if name == "heldout" and number < NUM_LOOSE:
                    (ROWS / f"heldout-{number}.png").write_bytes(png)
                url = "data:image/png;base64," + base64.b64encode(png).decode()
                user = [{"type": "image", "image": url}, {"type": "text", "text": QUESTION}]
                messages = [{"role": "user", "content": user}, {"role": "assistant", "content": json.dumps(receipt)}]
                file.write(json.dumps({"messages": messages}) + "\n")
        print(f"wrote {path.relative_to(ROOT)} ({path.stat().st_size / 1e6:.1f} MB)")


def make_sheet():
    """The first held-out pictures beside what the trained model reads in them: ``answers.png`` in the run."""
    from PIL import Image, ImageDraw, ImageFont

    run, columns, rows, scale = ROOT / "runs/demo_receipts", 2, 4, 2
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [sample for sample in samples if sample["moment"] == "end"]
    pictures = [json.loads(line) for line in (ROWS / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    cell = (scale * SIDE + 430, scale * SIDE + 8)
    sheet = Image.new("L", (columns * cell[0], rows * cell[1]), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default_imagefont()
    for i, (answer, row) in enumerate(zip(answers[: columns * rows], pictures)):
        x, y = i % columns * cell[0] + 4, i // columns * cell[1] + 4
        url = row["messages"][0]["content"][0]["image"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        sheet.paste(picture.resize((scale * SIDE, scale * SIDE)), (x, y))
        verdict = "right" if answer["exact"] else f"wrong, it is {answer['reference']}"
        pen.text((x + scale * SIDE + 8, y + 50), f"{answer['generated']}\n\n{verdict}", fill=0, font=font)
    sheet.save(run / "answers.png", optimize=True)
    print(f"wrote {(run / 'answers.png').relative_to(ROOT)}")


def make_tokenizer():
    """Byte-level BPE on answers; the question and the keys of an answer are single tokens, digits are apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(SEED)
    special = ["<|end|>", "<pad>", "<image>", "<|user|>", "<|assistant|>", "<|system|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=352, special_tokens=special, initial_alphabet=alphabet)
    texts = [f"{QUESTION} {json.dumps(make_receipt(rng))} {' '.join(SHOPS + ITEMS)}" for _ in range(500)]
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([*KEYS, QUESTION])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=TEMPLATE,
        model_max_length=256,
    )


def make_processor():
    """Tokenizer, image processor and the model's shape, without weights: training starts from random ones."""
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaProcessor

    tokenizer = make_tokenizer()
    size = {"height": SIDE, "width": SIDE}
    # White paper becomes zero, so that ink alone tells one patch from another.
    images = CLIPImageProcessorPil(
        size=size, do_center_crop=False, crop_size=size, image_mean=[0.94] * 3, image_std=[0.2] * 3
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    directory = ASSETS / "tiny_llava"
    processor.save_pretrained(directory)
    text = {**MODEL["text_config"], "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = LlavaConfig(
        text_config={**text, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id},
        vision_config=MODEL["vision_config"],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    config.save_pretrained(directory)
    print(f"wrote {directory.relative_to(ROOT)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["rows", "processor", "sheet"])
    {"rows": make_rows, "processor": make_processor, "sheet": make_sheet}[parser.parse_args().step]()
