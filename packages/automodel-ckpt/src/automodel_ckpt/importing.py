"""Take over checkpoints of other tools. Their metadata is a pickle: it is read by an unpickler that runs no code."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_ckpt.adapter import read_tensors
from automodel_ckpt.capture import Captured
from automodel_ckpt.coordination import Alone
from automodel_ckpt.errors import CheckpointNotFound, UnsafeFile
from automodel_ckpt.foreign_layouts import read_parts, resolve, step_in_name
from automodel_ckpt.planning import assign, offer
from automodel_ckpt.retention import Keep
from automodel_ckpt.saving import save_captured

_DCP = "torch.distributed.checkpoint."
_METADATA_CLASSES = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
_ALLOWED = {
    *((f"{_DCP}metadata", name) for name in _METADATA_CLASSES),
    (f"{_DCP}filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
_DTYPE = re.compile(r"(bool|u?int\d+|float\d+(_e\w+)?|bfloat16|complex\d+)")


class RestrictedUnpickler(pickle.Unpickler):
    """Builds the classes of torch's checkpoint metadata and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (module == "torch" and _DTYPE.fullmatch(name)):
            return super().find_class(module, name)
        raise UnsafeFile(
            f"the pickle asks for {module}.{name}, which torch's checkpoint metadata does not need: it may run code. "
            "The file is refused."
        )


def read_dcp(directory: str | os.PathLike) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a torch distributed checkpoint, and the names of its pickled objects, which are left out.

    Raises: CheckpointNotFound: no ``.metadata``. UnsafeFile: the pickle asks for anything but metadata classes.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    path = Path(directory, ".metadata")
    if not path.is_file():
        raise CheckpointNotFound(f"{path} does not exist; a torch distributed checkpoint has it. Check the path.")
    with open(path, "rb") as file:
        try:
            metadata = RestrictedUnpickler(file).load()
            entries = dict(metadata.state_dict_metadata)
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise UnsafeFile(f"{path} is not the metadata of a torch distributed checkpoint: {error}") from error

    class Reader(dcp.FileSystemReader):
        def read_metadata(self) -> Any:
            return metadata

    metadata.storage_meta = None
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=Reader(directory), no_dist=True)
    return tensors, sorted(entries.keys() - tensors.keys())


def read_model_directory(source: str | os.PathLike) -> tuple[dict[str, Tensor], list[str]]:
    """Model tensors of a directory of another tool: torch's, NeMo Automodel's, or plain safetensors files."""
    source = Path(source)
    for folder in (source / "model" / "consolidated", source / "model", source):
        if (folder / ".metadata").is_file():
            return read_dcp(folder)
        files = sorted(folder.glob("*.safetensors"))
        parts = [file for file in files if file.name.startswith("shard-")]
        if parts:
            return read_parts(parts), []
        if files:
            return {name: tensor for file in files for name, tensor in read_tensors(file).items()}, []
    raise CheckpointNotFound(f"{source} holds neither .metadata nor safetensors files. Check the path.")


def import_checkpoint(
    source: str | os.PathLike, root: str | os.PathLike, *, step: int | None = None, prefix: str = ""
) -> tuple[Path, list[str]]:
    """Write the model of another tool's checkpoint as ``root/step-<step>``, with hashes.

    Args:
        source: a torch distributed checkpoint, or a checkpoint or run of NeMo Automodel, with its ``LATEST``.
        step: default: the one in NeMo's name, ``epoch_E_step_S``.
        prefix: keep names that start with it, without it (``"model."``, for example).

    Returns: the checkpoint, and what was left out (pickled objects, other prefixes).
    """
    source = resolve(source)
    step = step_in_name(source) if step is None else step
    if step is None:
        raise ValueError(f"{source} does not say which step it is. Give it: --step N.")
    found, left_out = read_model_directory(source)
    tensors = {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}
    left_out += [name for name in found if not name.startswith(prefix)]
    if not tensors:
        raise CheckpointNotFound(f"{source} has no tensor whose name starts with {prefix!r}, but {sorted(found)[:3]}.")
    stored, aliases = _share_equal(tensors)
    sections = {"model": Captured(stored, aliases=aliases)}
    plan = assign([offer(sections, step, rank=0)])
    info = {"imported_from": str(Path(source).absolute())}
    path = save_captured(
        root, sections, plan, Alone(), step=step, keep=Keep(last=None), metrics={}, info=info, threads=2
    )
    return path, left_out


def _share_equal(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Store tensors of equal content once: other tools write both names of a tied pair."""
    import xxhash

    from automodel_ckpt.tensor_bytes import byte_reader

    first: dict[tuple, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        content = byte_reader(tensor)(0, tensor.numel() * tensor.element_size())
        key = (tensor.dtype, tuple(tensor.shape), xxhash.xxh3_128_hexdigest(content))
        if first.setdefault(key, name) != name:
            aliases[name] = first[key]
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}, aliases
