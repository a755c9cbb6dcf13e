"""Fine-tuning of vision-language models: the engine of the text recipe, with a processor in front of it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automodel_core.config import ConfigNode
from automodel_data.collate.families.parts import load_processor
from automodel_data.collate.vlm import COLLATE_FNS, default_collate_fn
from automodel_data.vlm.mixing import as_media_rows
from automodel_data.vlm.packing import pack_vlm_rows, refuse_leaking_vlm_packs
from automodel_recipes.build.call import accepted, build, plain
from automodel_recipes.build.data import build_eval_loader, build_train_loader
from automodel_recipes.build.vocabulary import KEYS, extended
from automodel_recipes.data_facts import DataFacts, first_row, gather_facts, reported
from automodel_recipes.errors import RecipeError, UnusableInputError
from automodel_recipes.llm.finetune import LLMFinetuneRecipe
from automodel_recipes.vlm.answers import LazyRows, generate_vlm_answers
from automodel_recipes.vlm.collate import BoundCollate
from automodel_recipes.vlm.pictures import with_pictures
from automodel_recipes.vlm.unreached import idle_without


class VLMFinetuneRecipe(LLMFinetuneRecipe):
    """SFT and LoRA of image-text (and audio) models that transformers knows, on one process or many.

    Training, validation, checkpoints, packing and every parallel layout are those of `LLMFinetuneRecipe`; what differs
    is that rows carry media and that a ``processor`` goes with the model wherever its tokenizer goes.
    """

    name = "vlm"

    def build_tokenizer(self) -> None:
        """The processor of the ``processor`` section, by default the model's own, and the tokenizer in it."""
        self.processor = build_processor(self.config)
        self.tokenizer = self.processor.tokenizer

    def build_data(self) -> None:
        """Training set, packed if asked for, and every ``validation_dataset[_NAME]``."""
        config = self.config
        dataset = self._rows(config.dataset)
        self._refuse_endless_run(dataset)
        self._refuse_idle_towers(dataset)
        self.data_facts = self._facts(dataset)
        self.first_row = first_row(dataset, self.tokenizer)
        packed = self._packed_size() > 0
        rows: Any = self._packed(dataset) if packed else dataset
        if packed:
            self.data_facts = replace(self.data_facts, pack_utilisation=rows.utilisation)
        self.train_loader = build_train_loader(
            config, rows, collate_fn=self._collate("dataloader"), parallel=self.parallel, seed=self.seed
        )
        self.build_validation()

    def _facts(self, dataset: Any) -> DataFacts:
        """Of a map-style set from its survey, without decoding anything."""
        if _is_stream(dataset):
            return gather_facts(dataset, self.tokenizer)
        return DataFacts(
            num_rows=len(dataset),
            num_rows_seen=len(dataset),
            num_tokens=int(dataset.lengths.sum()),
            num_label_tokens=dataset.report.num_label_tokens,
            max_length=int(dataset.lengths.max()),
            p95_length=int(np.percentile(dataset.lengths, 95)),
            **reported(dataset),
        )

    def _packed(self, dataset: Any) -> Any:
        if _is_stream(dataset):
            raise UnusableInputError(
                "packed_sequence over a stream of media: packs are made of rows whose lengths are known. Name a "
                "map-style dataset, such as llava_style, or leave packed_sequence out."
            )
        with self.answering() as model:
            refuse_leaking_vlm_packs(model, dataset.adapter)
        return pack_vlm_rows(dataset, **plain(self.config.packed_sequence))

    def _refuse_idle_towers(self, dataset: Any) -> None:
        """Several processes wait for the gradient of every trainable weight, also of those that no row reaches."""
        idle = idle_without(self.unwrapped(), getattr(dataset, "media_kinds", ()) or ("image",))
        if idle and self.parallel.world_size > 1:
            raise UnusableInputError(
                f"the data hold {' and '.join(dataset.media_kinds) or 'no media'} alone, so {len(idle)} trainable "
                f"parameters never get a gradient ({idle[0]}, ...), and processes would wait for it. Freeze them: "
                'freeze_config.freeze_audio_tower=true, or freeze_modules=["*.image_embed", "*_vision_speech"].'
            )

    def build_validation(self) -> None:
        """Set ``eval_loaders``, one a ``validation_dataset[_NAME]``, and ``eval_rows``, which are decoded on demand."""
        collate = self._collate("validation_dataloader" if "validation_dataloader" in self.config else "dataloader")
        self.eval_loaders = {}
        self.eval_rows = []
        for name, section in self._validation_sections():
            rows = self._rows(section)
            if _is_stream(rows):
                raise UnusableInputError(
                    f"validation set {name!r} is a stream ({type(rows).__name__}): validation covers every row once. "
                    "Name a map-style dataset, such as llava_style, with limit_dataset_samples."
                )
            self.eval_loaders[name] = build_eval_loader(self.config, rows, collate_fn=collate, parallel=self.parallel)
            if name == "val":
                self.eval_rows = LazyRows(rows)
                self.eval_dataset = rows

    def generate_answers(self, rows: Sequence[Any], **keys: Any) -> list[Any]:
        """Greedy answers to validation rows with their media, which are kept beside the first of them."""
        answers = generate_vlm_answers(
            self.unwrapped(),
            self.tokenizer,
            rows,
            adapter=self.eval_dataset.adapter,
            device=self.device,
            parallel=self.parallel,
            poll=self.poll_stop,
            **keys,
        )
        if not self.parallel.is_main or not hasattr(self, "run_dir"):  # nowhere to keep pictures
            return answers
        return with_pictures(answers, rows, self.eval_dataset, self.run_dir.path)

    def _validation_sections(self) -> Iterator[tuple[str, ConfigNode]]:
        for key in self.config:
            if key == "validation_dataset" or key.startswith("validation_dataset_"):
                yield key.removeprefix("validation_dataset").removeprefix("_") or "val", self.config.get(key)

    def _rows(self, section: ConfigNode) -> Any:
        rows = as_media_rows(build(section, processor=self.processor, tokenizer=self.tokenizer))
        if not hasattr(rows, "adapter"):
            raise RecipeError(
                f"{type(rows).__name__} gives no vision-language rows. Use a dataset that takes a processor, such as "
                "llava_style, cord_v2, rdr, medpix, cv17 or mock_vlm."
            )
        return rows

    def _collate(self, name: str) -> BoundCollate:
        section = self.config.get(name)
        node = section.get("collate_fn") if section is not None else None
        if node is None:
            by_name: Any = COLLATE_FNS.get(type(self.processor).__name__, default_collate_fn)
            return BoundCollate(by_name, self.processor, {})
        keys = {key: value for key, value in node.to_dict().items() if key != "_target_"}
        target: Any = node.target()
        if not accepted(target, {"processor": self.processor}):
            raise RecipeError(f"{name}.collate_fn takes no processor. Use default_collate_fn or another VLM collate.")
        return BoundCollate(target, self.processor, keys)


def _is_stream(dataset: Any) -> bool:
    return not hasattr(dataset, "__len__")


def build_processor(config: ConfigNode) -> Any:
    """The processor of the ``processor`` section, by default the one beside the model.

    Raises: RecipeError: neither section names a place.
    """
    section = config.get("processor")
    if section is not None and "_target_" in section:
        processor = section.without(*KEYS).instantiate()
        extended(processor.tokenizer, section)
        return processor
    keys = plain(None if section is None else section.without(*KEYS))
    source = keys.pop("pretrained_model_name_or_path", None)
    source = source if source is not None else _model_source(config)
    processor = load_processor(str(source), **keys)
    extended(processor.tokenizer, section)
    return processor


def _model_source(config: ConfigNode) -> str:
    for key in ("model.pretrained_model_name_or_path", "model.config"):
        source = config.path(key) if isinstance(config.get(key), (str, Path)) else None
        if source is not None:
            return str(source)
    raise RecipeError(
        "the model section names no directory or hub id, so there is no processor to take from it. "
        "Add processor.pretrained_model_name_or_path."
    )
