"""Weights of a GGUF file, dequantized one tensor at a time, by Transformers' names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def gguf_tensors(model: Any, path: str | os.PathLike) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name in memory, float32 tensor)`` for every tensor of the file that the model has a place for.

    Names and permutations are Transformers' own. Experts, which it gathers from several tensors, come last and whole.

    Args:
        model: a Transformers model on any device; sharded too.

    Raises: ImportError: with the pip line. NotImplementedError, ValueError: an architecture unknown to Transformers.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise ImportError(f"reading {path} needs the gguf package: pip install 'gguf>=0.10'") from error
    from transformers import modeling_gguf_pytorch_utils as hf

    parsed = hf.load_gguf_checkpoint(os.fspath(path), return_tensors=False)
    reader = GGUFReader(os.fspath(path))
    architecture = hf.read_field(reader, "general.architecture")[0]
    processor = hf.TENSOR_PROCESSORS.get(architecture, hf.TensorProcessor)(config=parsed["config"])
    names = hf.get_gguf_hf_weights_map(model, processor)
    parsed["tensors"] = {}
    for tensor in reader.tensors:
        result = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters=parsed,
        )
        if result.name in names:
            yield names[result.name], torch.from_numpy(result.weights.copy())
    yield from parsed["tensors"].items()
