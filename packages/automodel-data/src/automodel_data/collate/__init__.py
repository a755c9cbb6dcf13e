"""Collators: lists of rows in, one batch of tensors with Hugging Face keys out."""

from automodel_data.collate.classification import classification_collater
from automodel_data.collate.packed import packed_collater
from automodel_data.collate.text import default_collater, label_index

__all__ = ["classification_collater", "default_collater", "label_index", "packed_collater"]
