"""torch.distributed.checkpoint over a region: what it saves is one sealed commit.

    storage = RegionStorage("run.region", key)
    dcp.save(state, storage_writer=storage, planner=SavePlanner(), checkpoint_id=iteration)
    dcp.load(state, storage_reader=storage, planner=LoadPlanner())

The planners keep numbers, strings, lists and dicts as JSON, where torch's own would pickle them.
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
from plinius.jsonvalue import Json, to_json
from plinius.keys import OwnerKey, require_key
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.snapshot import Snapshot, TensorBytes
from plinius.state.classes import Classes
from plinius.state.codec import Decoder, Encoder
from plinius.state.environment import environment
from plinius.state.tensors import DTYPES, NAMES, Memory, copy_items, empty

_METADATA, _OBJECTS = "metadata", "objects"


class SavePlanner(DefaultSavePlanner):
    """torch's planner, but what is no tensor becomes JSON."""

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
    """torch's planner, for what `SavePlanner` saved."""

    def load_bytes(self, read_item: planner.ReadItem, value: io.BytesIO) -> None:
        """Put a value where it was in the state."""
        fqn = read_item.dest_index.fqn
        loaded = Decoder({}, Classes()).value(json.load(value), fqn)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[fqn], loaded)
        else:
            self.state_dict[fqn] = loaded


class RegionStorage(StorageWriter, StorageReader):
    """A region that torch.distributed.checkpoint saves to and loads from, in one process.

    `checkpoint_id` is the number of the iteration; without one they are counted from 1. The newest
    checkpoint is the one that is loaded; a stop while saving leaves it or the one before.
    """

    def __init__(self, region: str | Path | Region, key: OwnerKey) -> None:
        """Open a region, or make one. Raises what opening a region raises."""
        require_key(key)
        self._owns_region = not isinstance(region, Region)
        if not isinstance(region, Region):
            path = Path(region)
            region = Region.open_or_create(path)
        self._region, self._key = region, key
        self._slots: Slots | None = None
        self._about: Manifest | None = None
        try:
            self._slots = Slots.open(region, key, torch.get_num_threads())
            self._about = self._slots.newest() if self._slots else None
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
        return self._about.iteration if self._about else None

    def close(self) -> None:
        """Let go of the region, if it was opened here."""
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
        """Begin to gather. Raises StateError in a group of more than one process."""
        _require_one_process()
        self._tensors, self._objects = [], {}

    def prepare_local_plan(self, plan: Any) -> Any:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """The plans as they are."""
        return plans

    def write_data(
        self, plan: planner.SavePlan, planner: planner.SavePlanner
    ) -> Future[list[WriteResult]]:
        """Gather what the plan names; `finish` seals it. Raises StateError."""
        if not isinstance(planner, SavePlanner):
            raise StateError(
                "torch's own planner would pickle what is no tensor",
                "Give dcp.save planner=SavePlanner() of plinius.integrations",
            )
        results = []
        for item in plan.items:
            found = planner.resolve_data(item)
            if isinstance(found, io.BytesIO):
                size = found.getbuffer().nbytes
                self._objects[item.index.fqn] = json.load(found)
            else:
                stored = _stored(item.index, found.detach())
                size = stored.nbytes
                self._tensors.append(stored)
            results.append(WriteResult(item.index, size, None))
        return _done(results)

    def finish(self, metadata: metadata.Metadata, results: list[list[WriteResult]]) -> None:
        """Seal what was gathered and commit it. Raises RegionFullError and StorageError."""
        number, self._iteration = self._iteration, None
        if number is None:
            number = (self.iteration or 0) + 1
        values: dict[str, Json] = {_METADATA: _to_json(metadata), _OBJECTS: self._objects}
        snapshot = Snapshot(number, tuple(self._tensors), values, {}, environment())
        if self._slots is None:
            self._slots = Slots.create(self._region, self._key, torch.get_num_threads())
        self._slots.write(snapshot)
        self._about = self._slots.newest()
        self._tensors, self._objects = [], {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """What the newest checkpoint holds. Raises MismatchError if that is not one."""
        return _metadata(self._checkpoint().values[_METADATA])

    def set_up_storage_reader(
        self, metadata: metadata.Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Raises StateError in a group of more than one process."""
        _require_one_process()

    def read_data(self, plan: planner.LoadPlan, planner: planner.LoadPlanner) -> Future[None]:
        """Open the checkpoint into the tensors of the plan. Raises StateError and SealError."""
        if not isinstance(planner, LoadPlanner):
            raise StateError(
                "torch's own planner would unpickle what is no tensor",
                "Give dcp.load planner=LoadPlanner() of plinius.integrations",
            )
        about, slots = self._checkpoint(), cast(Slots, self._slots)
        wanted: dict[str, list[tuple[Any, torch.Tensor]]] = {}
        objects = cast(dict[str, Json], about.values[_OBJECTS])
        for item in plan.items:
            if item.type.name == "BYTE_IO":
                planner.load_bytes(item, io.BytesIO(to_json(objects[item.storage_index.fqn])))
            else:
                target = planner.resolve_tensor(item).detach()
                wanted.setdefault(_name(item.storage_index), []).append((item, target))
        sources = []
        for spec in about.tensors:
            source = empty(spec)
            targets = wanted.get(spec.name, [])
            if len(targets) == 1:  # opened where it belongs, if that is one whole tensor
                memory = Memory(targets[0][1])
                whole = (memory.dtype, memory.shape) == (spec.dtype, spec.shape)
                if whole and memory.own and memory.order == spec.order:
                    source = targets[0][1]
            sources.append(source)
        slots.read(about, [Memory(source).data for source in sources])
        for spec, source in zip(about.tensors, sources, strict=True):
            for item, target in wanted.get(spec.name, []):
                if target is not source:
                    part = source
                    for dim, (offset, length) in enumerate(
                        zip(item.storage_offsets, item.lengths, strict=True)
                    ):
                        part = part.narrow(dim, offset, length)
                    copy_items(target, part)
                planner.commit_tensor(item, target)
        return _done(None)

    def _checkpoint(self) -> Manifest:
        if self._about is None or _METADATA not in self._about.values:
            raise MismatchError(
                f"{self._region.name} holds no checkpoint of torch.distributed.checkpoint",
                "Save one there first, or name another region",
            )
        return self._about


def _require_one_process() -> None:
    if distributed.is_available() and distributed.is_initialized():
        count = distributed.get_world_size()
        if count > 1:
            raise StateError(
                f"A region is written by one process, not by a group of {count}",
                "Save from one process, or give each a mirror of its own (plinius.Mirror)",
            )


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _name(index: metadata.MetadataIndex) -> str:
    offset = [*index.offset] if index.offset is not None and any(index.offset) else None
    return to_json([index.fqn, cast(Json, offset)]).decode()


def _stored(index: metadata.MetadataIndex, tensor: torch.Tensor) -> TensorBytes:
    if tensor.layout is not torch.strided or tensor.dtype not in NAMES:
        raise StateError(
            f"The state cannot be saved: {index.fqn} is a {tensor.layout} tensor of {tensor.dtype}",
            "Give strided tensors of a dtype that the CPU has",
        )
    memory = Memory(tensor.cpu())
    return TensorBytes(_name(index), memory.dtype, memory.shape, memory.data, order=memory.order)


def _to_json(about: metadata.Metadata) -> Json:
    stored: dict[str, Json] = {}
    for fqn, item in about.state_dict_metadata.items():
        if isinstance(item, metadata.TensorStorageMetadata):
            chunks: list[Json] = [[[*c.offsets], [*c.sizes]] for c in item.chunks]
            stored[fqn] = [NAMES[item.properties.dtype], [*item.size], chunks]
        else:
            stored[fqn] = None
    paths: Json = None
    if about.planner_data is not None:
        paths = {fqn: [*path] for fqn, path in about.planner_data.items()}
    return {"items": stored, "paths": paths}


def _metadata(stored: Json) -> metadata.Metadata:
    about = cast(dict[str, Any], stored)
    items: dict[str, Any] = {}
    for fqn, item in about["items"].items():
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
    paths = about["paths"]
    mappings = None if paths is None else {fqn: tuple(path) for fqn, path in paths.items()}
    return metadata.Metadata(items, mappings)
