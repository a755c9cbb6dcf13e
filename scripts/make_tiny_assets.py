"""Makes everything that the demo ships: orders, tokenizer and model shape, and, after pretraining, the weights.

    python scripts/make_tiny_assets.py orders
    python scripts/make_tiny_assets.py colors
    python scripts/make_tiny_assets.py corpus
    python scripts/make_tiny_assets.py tokenizer
    automodel-recipes train examples/llm/pretrain_tiny.yaml
    python scripts/make_tiny_assets.py weights runs/pretrain_tiny/final

Each step is seeded: the same command gives the same bytes of text, and the same tokenizer.
"""

import argparse
import json
from pathlib import Path

from tiny import corpus, orders

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "packages/automodel-recipes/src/automodel_recipes/assets"
CORPUS = ROOT / "runs/tiny_corpus"
ORDERS_SEED, CORPUS_SEED, VALIDATION_SEED = 7, 1, 2
NUM_TRAIN, NUM_HELDOUT = 4000, 256
NUM_COLOR_ROWS = 1000
NUM_DOCUMENTS, NUM_VALIDATION_DOCUMENTS, NUM_TOKENIZER_DOCUMENTS = 100_000, 500, 30_000
VOCAB_SIZE = 1088
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}


def write_jsonl(path, rows):
    """Writes one JSON object per line, with the same bytes on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    print(f"wrote {path.relative_to(ROOT)} ({path.stat().st_size / 1e6:.1f} MB)")


def make_orders():
    """The instruction data: orders to train on, and held-out ones."""
    train, heldout = orders.make_split(NUM_TRAIN, NUM_HELDOUT, ORDERS_SEED)
    write_jsonl(ASSETS / "orders/train.jsonl", train)
    write_jsonl(ASSETS / "orders/heldout.jsonl", heldout)


def color_rows(order_rows):
    """Orders as a task for a classifier: the text, and the color that was ordered."""
    for row in order_rows:
        text, answer = (message["content"] for message in row["messages"])
        yield {"text": text, "label": json.loads(answer)["color"]}


def make_colors():
    """Classification data: the first orders to train on, and the held-out ones."""
    train, heldout = orders.make_split(NUM_TRAIN, NUM_HELDOUT, ORDERS_SEED)
    write_jsonl(ASSETS / "order_colors/train.jsonl", color_rows(train[:NUM_COLOR_ROWS]))
    write_jsonl(ASSETS / "order_colors/heldout.jsonl", color_rows(heldout))


def make_corpus():
    """The pretraining text, and a little more of it to validate on."""
    write_jsonl(CORPUS / "train.jsonl", ({"text": text} for text in corpus.documents(CORPUS_SEED, NUM_DOCUMENTS)))
    held_back = corpus.documents(VALIDATION_SEED, NUM_VALIDATION_DOCUMENTS)
    write_jsonl(CORPUS / "val.jsonl", ({"text": text} for text in held_back))


def make_tokenizer():
    """The tokenizer, and the configuration of the model that goes with it."""
    from tiny.tokenizer import train_tokenizer
    from transformers import GenerationConfig, LlamaConfig

    tokenizer = train_tokenizer(corpus.documents(CORPUS_SEED, NUM_TOKENIZER_DOCUMENTS), VOCAB_SIZE, corpus.FIELD_KEYS)
    tokenizer.save_pretrained(ASSETS / "tiny_llama")
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), architectures=["LlamaForCausalLM"], dtype="float32", **SHAPE, **ids)
    config.save_pretrained(ASSETS / "tiny_llama")
    GenerationConfig(eos_token_id=ids["eos_token_id"], pad_token_id=ids["pad_token_id"]).save_pretrained(
        ASSETS / "tiny_llama"
    )
    print(f"wrote {ASSETS / 'tiny_llama'} ({len(tokenizer)} tokens)")


def take_weights(trained):
    """Puts the weights of a finished pretraining run beside the tokenizer."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(Path(trained) / "model.safetensors")
    tensors.pop("lm_head.weight", None)  # tied to the embeddings
    save_file(tensors, ASSETS / "tiny_llama/model.safetensors", metadata={"format": "pt"})
    print(f"took {sum(t.numel() for t in tensors.values()) / 1e6:.2f} M parameters from {trained}")


def main():
    """Runs the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    makers = {"orders": make_orders, "colors": make_colors, "corpus": make_corpus, "tokenizer": make_tokenizer}
    for name, maker in makers.items():
        steps.add_parser(name, help=maker.__doc__)
    steps.add_parser("weights", help=take_weights.__doc__).add_argument(
        "trained", help="directory of the trained model"
    )
    arguments = parser.parse_args()
    if arguments.step == "weights":
        take_weights(arguments.trained)
    else:
        makers[arguments.step]()


if __name__ == "__main__":
    main()
