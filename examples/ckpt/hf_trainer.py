"""transformers.Trainer with crash-safe checkpoints. Run it, kill it, run it again.

python examples/ckpt/hf_trainer.py OUTPUT_DIRECTORY [STEPS]
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from automodel_ckpt.hf_trainer import CheckpointCallback

root, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 12


class PrintLoss(TrainerCallback):
    """Losses as hexadecimal, so that two runs can be compared bit by bit."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            print(f"step {state.global_step} loss {float(logs['loss']).hex()}", flush=True)


torch.manual_seed(0)
ids = torch.randint(0, 64, (32, 12))
data = [{"input_ids": row, "labels": row} for row in ids]
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,
        tie_word_embeddings=True,
    )
)
arguments = TrainingArguments(
    output_dir=f"{root}/trainer",
    max_steps=steps,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    learning_rate=1e-2,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
callback = CheckpointCallback(f"{root}/ckpt", every=1)
trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback, PrintLoss()])
trainer.train(resume_from_checkpoint=callback.resume_directory())
