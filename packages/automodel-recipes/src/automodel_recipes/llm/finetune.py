"""Fine-tuning and pretraining of language models: full-parameter and LoRA, on one process or many."""

from dataclasses import dataclass
from typing import Any

from automodel_data import refuse_leaking_packs
from automodel_recipes.base import BaseRecipe
from automodel_recipes.build.data import build_collate_fn, build_dataset, build_eval_loader, build_train_loader
from automodel_recipes.errors import UnusableInputError

_FACT_ROWS = 2000


@dataclass(frozen=True)
class DataFacts:
    """What the training rows hold, read from at most the first two thousand of them."""

    num_rows: int
    num_rows_seen: int
    num_tokens: int
    num_label_tokens: int
    max_length: int

    @property
    def is_complete(self) -> bool:
        """Whether every row was read."""
        return self.num_rows == self.num_rows_seen


def data_facts(dataset: Any) -> DataFacts:
    """Count tokens and supervised tokens of a dataset's rows."""
    seen = min(len(dataset), _FACT_ROWS)
    rows = [dataset[i] for i in range(seen)]
    lengths = [len(row["input_ids"]) for row in rows]
    labels = sum(sum(label != -100 for label in row["labels"]) for row in rows)
    return DataFacts(len(dataset), seen, sum(lengths), labels, max(lengths, default=0))


class LLMFinetuneRecipe(BaseRecipe):
    """SFT, LoRA and pretraining of any causal language model that transformers knows."""

    name = "llm"

    def build_data(self) -> None:
        """Training set, packed if asked for, and every ``validation_dataset[_NAME]``."""
        config = self.config
        dataset = build_dataset(config.dataset, tokenizer=self.tokenizer)
        if not hasattr(dataset, "__len__"):
            raise UnusableInputError(
                f"dataset is a stream ({type(dataset).__name__}); the recipe trains on numbered rows, each once "
                "an epoch, which is what a resumed run counts on. Name a map-style dataset, such as chat."
            )
        if len(dataset) == 0:
            raise UnusableInputError("the training dataset has no rows. Check dataset's path, split and filters.")
        self.data_facts = data_facts(dataset)
        if self.data_facts.num_label_tokens == 0:
            raise UnusableInputError(
                f"none of the first {self.data_facts.num_rows_seen} training rows has a supervised token. "
                "Check the chat template and the columns with `automodel-recipes data show`."
            )
        packed = self._packed_size() > 0
        if packed:
            refuse_leaking_packs(self.unwrapped(), vocab_size=len(self.tokenizer))
        train_rows = self._pack(dataset) if packed else dataset
        collate = self.build_collate_fn(config.get("dataloader"), packed=packed)
        self.train_loader = build_train_loader(
            config, train_rows, collate_fn=collate, parallel=self.parallel, seed=self.seed
        )
        self._build_validation()

    def build_collate_fn(self, section: Any, *, packed: bool) -> Any:
        """What turns a list of rows into a batch."""
        return build_collate_fn(section, tokenizer=self.tokenizer, packed=packed)

    def _build_validation(self) -> None:
        config = self.config
        section = config.get("validation_dataloader") or config.get("dataloader")
        collate = self.build_collate_fn(section, packed=False)
        self.eval_loaders = {}
        self.eval_rows = []
        for key in config:
            if key != "validation_dataset" and not key.startswith("validation_dataset_"):
                continue
            rows = build_dataset(config.get(key), tokenizer=self.tokenizer)
            name = key.removeprefix("validation_dataset").removeprefix("_") or "val"
            self.eval_loaders[name] = build_eval_loader(config, rows, collate_fn=collate, parallel=self.parallel)
            if name == "val":
                self.eval_rows = [rows[i] for i in range(len(rows))]

    def _packed_size(self) -> int:
        return int(self.config.get("packed_sequence.packed_sequence_size", 0) or 0)

    def _pack(self, dataset: Any) -> Any:
        from automodel_data import PackedSequence

        keys = self.config.packed_sequence.to_dict()
        return PackedSequence(dataset, **keys).pack()
