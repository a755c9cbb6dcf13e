"""transformers.Trainer, or TRL's SFTTrainer, on masked chats in an order that resumes. Run it, kill it, run it again.

python examples/data/hf_trainer.py OUTPUT_DIRECTORY [--trl] [--epochs 2]
torchrun --nproc-per-node 2 examples/data/hf_trainer.py OUTPUT_DIRECTORY

A step is 8 rows, whatever the number of processes; each prints which rows it was.
"""

import argparse
import os
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from automodel_data import ChatDataset, build_dataloader, default_collater, use_loader

GLOBAL_BATCH, LOCAL_BATCH = 8, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that nothing has to be downloaded; use AutoTokenizer with a model of yours."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **specials)


def show_rows(rows):
    """Our padding collator, which also says what is trained on."""
    batch = default_collater(rows)
    print(f"rank {os.environ.get('RANK', 0)} rows {batch['sample_ids'].tolist()}", flush=True)
    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    tokenizer = byte_tokenizer()
    chats = [{"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}."} for i in range(29)]
    dataset = ChatDataset(chats, tokenizer)
    loader = build_dataloader(
        dataset,
        collate_fn=show_rows,
        global_batch_size=GLOBAL_BATCH,
        local_batch_size=LOCAL_BATCH,
        dp_rank=rank,
        dp_size=world,
        seed=3,
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), use_cache=False, **sizes))
    settings = {
        "output_dir": str(options.output),
        "per_device_train_batch_size": LOCAL_BATCH,
        "gradient_accumulation_steps": GLOBAL_BATCH // (LOCAL_BATCH * world),
        "num_train_epochs": options.epochs,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "report_to": [],
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    if options.trl:
        from trl import SFTConfig, SFTTrainer

        # The rows are tokenised and masked: nothing is left to prepare.
        arguments = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, bf16=False, **settings)
        trainer = SFTTrainer(model, arguments, train_dataset=dataset.hf_dataset(), processing_class=tokenizer)
    else:
        trainer = Trainer(model, TrainingArguments(**settings), train_dataset=dataset)
    use_loader(trainer, loader)
    saved = sorted(options.output.glob("checkpoint-*/trainer_state.json"))
    trainer.train(resume_from_checkpoint=True if saved else None)


if __name__ == "__main__":
    main()
