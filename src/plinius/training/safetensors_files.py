"""Parameters of a model in a .safetensors file, in clear: exported from a run, or its start."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn.parameter import is_lazy

from plinius.errors import FormatError, MismatchError, StateError
from plinius.files import publish, read_file
from plinius.snapshot import Snapshot
from plinius.state.restore import is_outside_state_dict, load_tensors
from plinius.state.tensor_memory import tensor_of


def export_safetensors(
    snapshot: Snapshot, part: str, path: Path, metadata: dict[str, str] | None = None
) -> int:
    """Write the tensors of one part of the state to a new file; returns how many.

    Raises as `safetensors_file` does, and StorageError if the file exists or cannot be written.
    """
    data, count = safetensors_file(snapshot, part, metadata)
    with publish(path) as file:
        file.write(data)
    return count


def safetensors_file(
    snapshot: Snapshot, part: str, metadata: dict[str, str] | None = None
) -> tuple[bytes, int]:
    """The bytes of a file of the tensors of one part of the state, and how many these are.

    They have the names that they have within the part. A tensor with several names is written
    once, under the first. `metadata` becomes the metadata of the file. Raises MismatchError if the
    part has no tensors, StateError for a dtype that the file format does not have.
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
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return save(whole, metadata), len(tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StateError(
            f"The tensors of {part} cannot be written to a .safetensors file: {error}",
            "Name another part (--part), or convert them to another dtype first",
        ) from None


def import_safetensors(model: torch.nn.Module, path: str | Path) -> None:
    """Copy the tensors of a file that `export_safetensors` wrote into a model, in place.

    Raises StorageError, FormatError, and MismatchError if names, dtypes or shapes differ; the
    model is then unchanged.
    """
    held = [it for it in (*model.parameters(), *model.buffers()) if not is_lazy(it)]
    limit = 2 * sum(it.nbytes for it in held) + (128 << 20)
    load_safetensors(model, read_file(path, limit), str(path))


def load_safetensors(model: torch.nn.Module, data: bytes, name: str) -> None:
    """As `import_safetensors`, from the bytes of a file; `name` is used in messages."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError):
        raise FormatError(
            f"{name} is not a .safetensors file", "Name one, as written by plinius export"
        ) from None
    load_tensors(model, "model", {f"model/{name}": tensor for name, tensor in tensors.items()})
