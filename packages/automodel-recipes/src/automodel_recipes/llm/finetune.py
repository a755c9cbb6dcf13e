"""Fine-tuning and pretraining of language models: full-parameter and LoRA, on one process or many."""

from dataclasses import replace
from typing import Any

from automodel_data import refuse_leaking_packs
from automodel_recipes.base import BaseRecipe
from automodel_recipes.build.data import build_collate_fn, build_dataset, build_eval_loader, build_train_loader
from automodel_recipes.data_facts import first_row, gather_facts
from automodel_recipes.errors import UnusableInputError


class LLMFinetuneRecipe(BaseRecipe):
    """SFT, LoRA and pretraining of any causal language model that transformers knows."""

    name = "llm"

    def build_data(self) -> None:
        """Training set, packed if asked for, and every ``validation_dataset[_NAME]``."""
        config = self.config
        dataset = build_dataset(config.dataset, tokenizer=self.tokenizer)
        self._refuse_endless_run(dataset)
        self.data_facts = gather_facts(dataset, self.tokenizer)
        if self.data_facts.num_rows_seen == 0:
            raise UnusableInputError("the training dataset has no rows. Check dataset's path, split and filters.")
        if self.data_facts.num_label_tokens == 0:
            raise UnusableInputError(
                f"none of the first {self.data_facts.num_rows_seen} training rows has a supervised token. "
                "Check the chat template and the columns with `automodel-recipes data show`."
            )
        packed = self._packed_size() > 0
        if packed:
            with self.answering() as model:
                refuse_leaking_packs(model, vocab_size=len(self.tokenizer))
        self.first_row = first_row(dataset, self.tokenizer)
        train_rows = self._pack(dataset) if packed else dataset
        if packed:
            self.data_facts = replace(self.data_facts, pack_utilisation=getattr(train_rows, "utilisation", None))
        collate = self.build_collate_fn(config.get("dataloader"), packed=packed)
        self.train_loader = build_train_loader(
            config, train_rows, collate_fn=collate, parallel=self.parallel, seed=self.seed
        )
        self.build_validation()

    def _refuse_endless_run(self, dataset: Any) -> None:
        if hasattr(dataset, "__len__") or self.config.get("step_scheduler.max_steps") is not None:
            return
        raise UnusableInputError(
            f"dataset is a stream ({type(dataset).__name__}), whose length nobody knows, so the run would have no end "
            "and the learning rate no schedule. Set step_scheduler.max_steps."
        )

    def build_collate_fn(self, section: Any, *, packed: bool) -> Any:
        """What turns a list of rows into a batch."""
        return build_collate_fn(section, tokenizer=self.tokenizer, packed=packed)

    def build_validation(self) -> None:
        """Set ``eval_loaders``, one a ``validation_dataset[_NAME]``, and ``eval_rows``."""
        config = self.config
        section = config.get("validation_dataloader") or config.get("dataloader")
        collate = self.build_collate_fn(section, packed=False)
        self.eval_loaders = {}
        self.eval_rows = []
        for key in config:
            if key != "validation_dataset" and not key.startswith("validation_dataset_"):
                continue
            rows = build_dataset(config.get(key), tokenizer=self.tokenizer)
            if not hasattr(rows, "__len__"):
                raise UnusableInputError(
                    f"{key} is a stream ({type(rows).__name__}): validation covers every row once, on any number of "
                    "ranks. Name a map-style dataset, such as chat, with limit_dataset_samples."
                )
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
