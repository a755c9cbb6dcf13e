"""Read a checkpoint's tensors without a model: whole or in part."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.boxes import Box, whole
from automodel_ckpt.directory import Directory, check_sizes, locate, read_manifest
from automodel_ckpt.dtypes import dtype_of
from automodel_ckpt.errors import CheckpointNotFound
from automodel_ckpt.manifest import Section, TensorRecord
from automodel_ckpt.reader import read_file, targets_for
from automodel_ckpt.section_tree import read_section_tree
from automodel_ckpt.tree import decode, tensor_names


class Contents:
    """What a checkpoint holds; every byte that is read is checked against its hash.

    Args:
        path: a checkpoint, or a directory of them: then the newest complete one.
    """

    def __init__(self, path: str | os.PathLike | Directory) -> None:
        self.directory, self.name = locate(path)
        self.manifest = read_manifest(self.directory, self.name)
        check_sizes(self.directory, self.name, self.manifest)

    def section(self, name: str) -> Section:
        """A section's records.

        Raises: CheckpointNotFound: the checkpoint has no such section.
        """
        if name not in self.manifest.sections:
            have = ", ".join(sorted(self.manifest.sections))
            raise CheckpointNotFound(f"{self.directory.path(self.name)} has no section {name!r}; it has {have}.")
        return self.manifest.sections[name]

    def tensor(self, section: str, name: str) -> Tensor:
        """A whole tensor on the CPU; tied names give the tensor that stands for them."""
        stored = self.section(section)
        record = stored.tensors[stored.aliases.get(name, name)]
        return self._fill(stored.aliases.get(name, name), record, whole(record.shape))

    def tensors(self, section: str) -> dict[str, Tensor]:
        """All tensors of a section, tied names included."""
        stored = self.section(section)
        loaded = {name: self.tensor(section, name) for name in stored.tensors}
        return {**loaded, **{alias: loaded[name] for alias, name in stored.aliases.items()}}

    def part(self, section: str, name: str, box: Box) -> Tensor:
        """A part of a tensor on the CPU."""
        return self._fill(name, self.section(section).tensors[name], box)

    def _fill(self, name: str, record: TensorRecord, box: Box) -> Tensor:
        tensor = torch.empty(box.shape, dtype=dtype_of(record.dtype))
        for file, targets in targets_for(name, record, box, tensor).items():
            path = f"{self.name}/{file}"
            read_file(self.directory, path, self.manifest.files[file], targets, hashed=True)
        return tensor

    def state(self, section: str, rank: int = 0) -> Any:
        """A section of plain state, decoded (of per-rank state, that of ``rank``)."""
        self.section(section)
        tree = read_section_tree(self.directory, self.name, self.manifest, section, rank)
        if tree is None:
            raise CheckpointNotFound(f"section {section!r} has no plain state for rank {rank}.")
        return decode(tree, {name: self.tensor(section, name) for name in tensor_names(tree)})
