"""Parameters of a model in a .safetensors file, in clear: what leaves a run, or begins one."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from plinius.errors import FormatError, MismatchError, StateError, StorageError
from plinius.files import open_to_read, publish
from plinius.snapshot import Snapshot
from plinius.state.restore import is_outside_state_dict, load_tensors
from plinius.state.tensors import tensor_of


def export_safetensors(snapshot: Snapshot, part: str, path: Path, **about: str) -> int:
    """Write the tensors of one part of a snapshot, by their names within it; returns how many.

    `about` is the file's metadata. A tensor that shows under several names is written once, under
    the first. Raises MismatchError if there are no tensors of that name, StateError for a dtype
    that the format has not, StorageError if the file exists or cannot be written.
    """
    root = part + "/"
    tensors = {
        stored.name.removeprefix(root).replace("~1", "/").replace("~0", "~"): tensor_of(stored)
        for stored in snapshot.tensors
        if stored.name.startswith(root) and not is_outside_state_dict(stored.name)
    }
    if not tensors:
        parts = sorted({t.name.split("/")[0] for t in snapshot.tensors} - {"~rng"})
        raise MismatchError(
            f"The mirrored state has no tensors in {part}",
            f"Name one of its parts (--part): {', '.join(parts) or 'it has no tensors at all'}",
        )
    try:
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StateError(
            f"The tensors of {part} do not go into a .safetensors file: {error}",
            "Name another part (--part), or convert them to another dtype first",
        ) from None
    with publish(path) as file:
        file.write(data)
    return len(tensors)


def import_safetensors(model: torch.nn.Module, path: str | Path) -> None:
    """Put the tensors of a file into a model, in place, as `export_safetensors` named them.

    Raises FormatError, StorageError, and MismatchError, changing nothing, if their names, dtypes
    or shapes differ.
    """
    try:
        with open_to_read(path) as file:
            data = file.read()
    except OSError as error:
        raise StorageError(
            f"Cannot read {path}: {error.strerror}", "Name a file that can be read"
        ) from None
    tensors_from(model, data, str(path))


def tensors_from(model: torch.nn.Module, data: bytes, name: str) -> None:
    """As `import_safetensors`, from the bytes of a file that is called `name`."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError):
        raise FormatError(
            f"{name} is no .safetensors file", "Name one that plinius export or others wrote"
        ) from None
    load_tensors(model, "model", {f"model/{name}": tensor for name, tensor in tensors.items()})
