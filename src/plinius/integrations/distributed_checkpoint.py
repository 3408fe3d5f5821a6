"""torch.distributed.checkpoint with a region as its storage: a checkpoint is one sealed commit.

    storage = RegionStorage("run.region", key)
    dcp.save(state, storage_writer=storage, planner=SavePlanner(), checkpoint_id=iteration)
    dcp.load(state, storage_reader=storage, planner=LoadPlanner())

The planners store numbers, strings, lists and dicts as JSON. torch's own would pickle them.
"""

import io
import json
import os
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import distributed
from torch.distributed.checkpoint import metadata, planner
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from plinius.errors import MismatchError, StateError
from plinius.integrations.shared import require_one_process
from plinius.jsonvalue import Json, to_json
from plinius.keys import OwnerKey, require_key
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.snapshot import Snapshot, TensorBytes
from plinius.state.class_lookup import Classes
from plinius.state.codec import Decoder, Encoder
from plinius.state.devices import is_on_host
from plinius.state.exactness import environment
from plinius.state.tensor_memory import DTYPES, NAMES, Memory, copy_items, empty

_METADATA, _OBJECTS = "metadata", "objects"


class SavePlanner(DefaultSavePlanner):
    """torch's planner for saving, with JSON instead of pickle for values that are not tensors."""

    def transform_object(self, write_item: planner.WriteItem, object: Any) -> Any:
        """The tensor, or the JSON as io.BytesIO. Raises StateError for what JSON cannot hold."""
        if write_item.type is not planner.WriteItemType.BYTE_IO:
            return object
        fqn = write_item.index.fqn
        encoder = Encoder(Classes())
        node = encoder.node(object, fqn)
        if encoder.tensors:
            raise StateError(
                f"The state cannot be saved: {fqn} holds arrays within a list",
                "Put arrays and tensors into dicts",
            )
        return io.BytesIO(to_json(node))


class LoadPlanner(DefaultLoadPlanner):
    """torch's planner for loading, for what `SavePlanner` saved."""

    def load_bytes(self, read_item: planner.ReadItem, value: io.BytesIO) -> None:
        """Set a loaded value in the state."""
        fqn = read_item.dest_index.fqn
        loaded = Decoder({}, Classes()).value(json.load(value), fqn)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[fqn], loaded)
        else:
            self.state_dict[fqn] = loaded


class RegionStorage(StorageWriter, StorageReader):
    """A region that torch.distributed.checkpoint saves to and loads from, in one process.

    `checkpoint_id` is the number of the iteration. Without it, checkpoints are counted from 1. The
    newest checkpoint is loaded. If the process stops while it saves, the newest checkpoint is the
    new one or the one before it.
    """

    def __init__(self, region: str | Path | Region, key: OwnerKey) -> None:
        """Open a region, or create one. Raises what opening a region raises."""
        require_key(key)
        self._owns_region = not isinstance(region, Region)
        if not isinstance(region, Region):
            region = Region.open_or_create(Path(region))
        self._region, self._key = region, key
        self._slots: Slots | None = None
        self._manifest: Manifest | None = None
        try:
            self._slots = Slots.open(region, key, torch.get_num_threads())
            self._manifest = self._slots.newest() if self._slots else None
        except BaseException:
            self.close()
            raise
        self._iteration: int | None = None
        self._tensors: list[TensorBytes] = []
        self._objects: dict[str, Json] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def iteration(self) -> int | None:
        """The number of the newest checkpoint; None if there is none."""
        return self._manifest.iteration if self._manifest else None

    def close(self) -> None:
        """Close the region, if it was opened here."""
        if self._slots:
            self._slots.close()
        if self._owns_region:
            self._region.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is the number of an iteration."""
        text = str(checkpoint_id)
        return text.isdecimal() and len(text) < 20 and int(text) < 2**63

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new checkpoint. Raises MismatchError if its name is no number."""
        if checkpoint_id is not None and not self.validate_checkpoint_id(checkpoint_id):
            raise MismatchError(
                f"{checkpoint_id} is not the number of an iteration",
                "Give checkpoint_id the iteration's number, or leave it out",
            )
        self._iteration = None if checkpoint_id is None else int(str(checkpoint_id))

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin to collect. Raises StateError in a group of several processes."""
        _require_one_process()
        self._tensors, self._objects = [], {}

    def prepare_local_plan(self, plan: Any) -> Any:
        """The plan, unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """The plans, unchanged."""
        return plans

    def write_data(
        self, plan: planner.SavePlan, planner: planner.SavePlanner
    ) -> Future[list[WriteResult]]:
        """Collect what the plan names; `finish` seals it. Raises StateError."""
        if not isinstance(planner, SavePlanner):
            raise StateError(
                "torch's own planner would pickle values that are not tensors",
                "Give dcp.save planner=SavePlanner() of plinius.integrations",
            )
        results = []
        for item in plan.items:
            data = planner.resolve_data(item)
            if isinstance(data, io.BytesIO):
                size = data.getbuffer().nbytes
                self._objects[item.index.fqn] = json.load(data)
            else:
                tensor = _tensor_bytes(item.index, data.detach())
                size = tensor.nbytes
                self._tensors.append(tensor)
            results.append(WriteResult(item.index, size, None))
        return _finished(results)

    def finish(self, metadata: metadata.Metadata, results: list[list[WriteResult]]) -> None:
        """Seal what was collected, and commit it. Raises RegionFullError and StorageError."""
        number, self._iteration = self._iteration, None
        if number is None:
            number = (self.iteration or 0) + 1
        values: dict[str, Json] = {_METADATA: _metadata_to_json(metadata), _OBJECTS: self._objects}
        snapshot = Snapshot(number, tuple(self._tensors), values, {}, environment())
        if self._slots is None:
            self._slots = Slots.create(self._region, self._key, torch.get_num_threads())
        self._slots.write(snapshot)
        self._manifest = self._slots.newest()
        self._tensors, self._objects = [], {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """What the newest checkpoint holds. Raises MismatchError if there is none."""
        return _metadata_from_json(self._checkpoint().values[_METADATA])

    def set_up_storage_reader(
        self, metadata: metadata.Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Check the group. Raises StateError in a group of several processes."""
        _require_one_process()

    def read_data(self, plan: planner.LoadPlan, planner: planner.LoadPlanner) -> Future[None]:
        """Open the checkpoint into the tensors of the plan. Raises StateError and SealError."""
        if not isinstance(planner, LoadPlanner):
            raise StateError(
                "torch's own planner would unpickle values that are not tensors",
                "Give dcp.load planner=LoadPlanner() of plinius.integrations",
            )
        manifest, slots = self._checkpoint(), cast(Slots, self._slots)
        wanted: dict[str, list[tuple[Any, torch.Tensor]]] = {}
        objects = cast(dict[str, Json], manifest.values[_OBJECTS])
        for item in plan.items:
            if item.type.name == "BYTE_IO":
                planner.load_bytes(item, io.BytesIO(to_json(objects[item.storage_index.fqn])))
            else:
                target = planner.resolve_tensor(item).detach()
                wanted.setdefault(_name(item.storage_index), []).append((item, target))
        sources = []
        for spec in manifest.tensors:
            source = empty(spec)
            targets = wanted.get(spec.name, [])
            # Opened directly into the target, if that is the whole tensor and on the host.
            if len(targets) == 1 and is_on_host(targets[0][1]):
                memory = Memory(targets[0][1])
                whole = (memory.dtype, memory.shape) == (spec.dtype, spec.shape)
                if whole and memory.own and memory.order == spec.order:
                    source = targets[0][1]
            sources.append(source)
        slots.read(manifest, [Memory(source).data for source in sources])
        for spec, source in zip(manifest.tensors, sources, strict=True):
            for item, target in wanted.get(spec.name, []):
                if target is not source:
                    view = source
                    for dim, (offset, length) in enumerate(
                        zip(item.storage_offsets, item.lengths, strict=True)
                    ):
                        view = view.narrow(dim, offset, length)
                    copy_items(target, view)
                planner.commit_tensor(item, target)
        return _finished(None)

    def _checkpoint(self) -> Manifest:
        if self._manifest is None or _METADATA not in self._manifest.values:
            raise MismatchError(
                f"{self._region.name} holds no checkpoint of torch.distributed.checkpoint",
                "Save one there first, or name another region",
            )
        return self._manifest


def _require_one_process() -> None:
    if distributed.is_available() and distributed.is_initialized():
        require_one_process(
            distributed.get_world_size(),
            "Save from one process, or give each a mirror of its own (plinius.Mirror)",
        )


def _finished(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _name(index: metadata.MetadataIndex) -> str:
    offset = [*index.offset] if index.offset is not None and any(index.offset) else None
    return to_json([index.fqn, cast(Json, offset)]).decode()


def _tensor_bytes(index: metadata.MetadataIndex, tensor: torch.Tensor) -> TensorBytes:
    if tensor.layout is not torch.strided or tensor.dtype not in NAMES:
        raise StateError(
            f"The state cannot be saved: {index.fqn} is a {tensor.layout} tensor of {tensor.dtype}",
            "Give strided tensors of a dtype that the CPU has",
        )
    memory = Memory(tensor.cpu())
    return TensorBytes(_name(index), memory.dtype, memory.shape, memory.data, order=memory.order)


def _metadata_to_json(value: metadata.Metadata) -> Json:
    stored: dict[str, Json] = {}
    for fqn, item in value.state_dict_metadata.items():
        if isinstance(item, metadata.TensorStorageMetadata):
            chunks: list[Json] = [[[*c.offsets], [*c.sizes]] for c in item.chunks]
            stored[fqn] = [NAMES[item.properties.dtype], [*item.size], chunks]
        else:
            stored[fqn] = None
    paths: Json = None
    if value.planner_data is not None:
        paths = {fqn: [*path] for fqn, path in value.planner_data.items()}
    return {"items": stored, "paths": paths}


def _metadata_from_json(stored: Json) -> metadata.Metadata:
    fields = cast(dict[str, Any], stored)
    items: dict[str, Any] = {}
    for fqn, item in fields["items"].items():
        if item is None:
            items[fqn] = metadata.BytesStorageMetadata()
            continue
        dtype, size, chunks = item
        items[fqn] = metadata.TensorStorageMetadata(
            metadata.TensorProperties(DTYPES[dtype]),
            torch.Size(size),
            [
                metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                for offsets, sizes in chunks
            ],
        )
    paths = fields["paths"]
    mappings = None if paths is None else {fqn: tuple(path) for fqn, path in paths.items()}
    return metadata.Metadata(items, mappings)
