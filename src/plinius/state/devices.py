"""Tensors on devices (GPUs): their bytes are copied to the host, where they are sealed.

Large tensors are fingerprinted on the device, and copied only if they changed. The fingerprint of a
block of words w[i] (32 bits) is four sums of w[i] * k[i] mod 2^64, with random secret keys k[i] of
64 bits (multilinear hashing: Lemire and Kaser, "Strongly universal string hashing is fast", 2014).
If two blocks differ in a word by d = 2^t * odd, where t < 32, then their sums are equal for at most
2^t of the 2^64 keys of that word. So all four are equal with a probability of at most 2^-132.
"""

import functools
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from plinius.pm.medium import round_up
from plinius.snapshot import TensorBytes, TensorSpec
from plinius.state.tensor_memory import (
    Memory,
    bytes_of,
    order_of,
    packed,
    tensor_type,
)

SUPPORTED = ("cuda", "xpu", "mps")
SMALL_BYTES = 64 * 1024
"""Smaller tensors are gathered on the device and copied at once, without a fingerprint."""
BLOCK_WORDS = 1 << 20
_SUMS, _ALIGNMENT = 4, 64


@dataclass(frozen=True, eq=False)
class DeviceTensor(TensorSpec):
    """A named tensor that is not in the host's memory; `source` is its items as bytes."""

    source: torch.Tensor = field(repr=False)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.source.device

    @classmethod
    def of(cls, tensor: torch.Tensor, name: str) -> "DeviceTensor":
        """The tensor under a name. If its items have gaps or overlap, `source` is a copy."""
        order = order_of(tensor)
        source = packed(tensor, order).reshape(-1).view(torch.uint8)
        return cls(name, *tensor_type(tensor), order=order, source=source)


Items = TensorBytes | DeviceTensor


class Device:
    """What copies from a device need; this one waits for each copy."""

    def synchronize(self) -> None:
        """Wait until all that was asked of the device is done."""

    def host_memory(self, length: int) -> torch.Tensor:
        """Bytes in the host's memory."""
        return torch.empty(length, dtype=torch.uint8)

    def copy_out(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy the first of each pair, on the device, to the second, on the host."""
        for source, to in pairs:
            to.copy_(source)


class Cuda(Device):
    """A GPU. It copies to page-locked memory, in a stream of its own, all tensors in one go."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def synchronize(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize(self._device)

    def host_memory(self, length: int) -> torch.Tensor:
        """Page-locked bytes."""
        return torch.empty(length, dtype=torch.uint8, pin_memory=True)

    def copy_out(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy what the current stream has written, and wait for all copies together."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for source, to in pairs:
                to.copy_(source, non_blocking=True)
        self._stream.synchronize()


_Made = tuple[DeviceTensor, TensorBytes]


class HostCopies:
    """Copies on the host of tensors of one device, in memory that each commit uses again."""

    def __init__(self, device: torch.device) -> None:
        self._where = device
        self._device = device_for(device)
        self._fingerprints = _Fingerprints(device)
        self._layout = _Layout(self._device, device, [])
        self._known: dict[int, torch.Tensor] = {}
        self._made: list[_Made] = []

    def of(self, tensors: Sequence[DeviceTensor]) -> tuple[list[TensorBytes], list[Hashable]]:
        """The tensors with their bytes of now, and a version of each; None is unknown.

        A version that is equal to one before proves that the bytes are, too.
        """
        lengths = [it.nbytes for it in tensors]
        if lengths != self._layout.lengths:
            self._known, self._made = {}, []
            self._layout = _Layout(self._device, self._where, lengths)
        layout, pairs = self._layout, []
        self._device.synchronize()  # another stream may still write
        if layout.small:
            torch._foreach_copy_(layout.gathered, [tensors[i].source for i in layout.small])
            pairs.append((layout.on_device, layout.memory[: len(layout.on_device)]))
        found = self._fingerprints.of([tensors[i].source for i in layout.large])
        for index, fingerprint in zip(layout.large, found, strict=True):
            known = self._known.pop(index, None)
            if known is None or not torch.equal(known, fingerprint):
                pairs.append((tensors[index].source, layout.parts[index]))
                layout.copies[index] += 1
        self._device.copy_out(pairs)
        self._known = dict(zip(layout.large, found, strict=True))
        made: Sequence[_Made | None] = self._made or [None] * len(tensors)
        self._made = [
            known if known and known[0] is it else (it, _bytes(it, part))
            for it, part, known in zip(tensors, layout.parts, made, strict=True)
        ]
        versions: list[Hashable] = [None] * len(tensors)
        for index in layout.large:
            versions[index] = (layout.memory, layout.copies[index])
        return [copy for _, copy in self._made], versions


class _Layout:
    """Where tensors of these lengths are in the host's memory: the small ones first."""

    def __init__(self, device: Device, where: torch.device, lengths: list[int]) -> None:
        self.lengths = lengths
        self.small = [index for index, length in enumerate(lengths) if length < SMALL_BYTES]
        self.large = [index for index, length in enumerate(lengths) if length >= SMALL_BYTES]
        order = [*self.small, *self.large]
        ends = [*accumulate(round_up(lengths[index], _ALIGNMENT) for index in order)]
        starts = dict(zip(order, [0, *ends], strict=False))
        self.memory = device.host_memory(ends[-1] if ends else 0)
        self.parts = [self.memory[starts[i] :][:length] for i, length in enumerate(lengths)]
        end = ends[len(self.small) - 1] if self.small else 0
        self.on_device = torch.empty(end, dtype=torch.uint8, device=where)
        self.gathered = [self.on_device[starts[i] :][: lengths[i]] for i in self.small]
        self.copies = [0] * len(lengths)


class _Fingerprints:
    """Fingerprints of memory of one device, made there, under keys of its own."""

    def __init__(self, device: torch.device) -> None:
        keys = torch.frombuffer(bytearray(os.urandom(_SUMS * BLOCK_WORDS * 8)), dtype=torch.int64)
        self._keys = keys.view(_SUMS, BLOCK_WORDS).to(device)

    def of(self, sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The sums of each source (bytes on the device): blocks x 4, on the host."""
        if not sources:
            return []
        sums = [torch.stack([*map(self._sums, _blocks(source))]) for source in sources]
        return [*torch.cat(sums).cpu().split([len(it) for it in sums])]

    def _sums(self, words: torch.Tensor) -> torch.Tensor:
        return (self._keys[:, : len(words)] * words).sum(1)


def _blocks(source: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The bytes as words, in blocks; the last word is filled up with zeros."""
    if source.numel() % 4:
        source = torch.nn.functional.pad(source, (0, -source.numel() % 4))
    elif source.storage_offset() % 4:
        source = source.clone()
    return tuple(source.view(torch.int32).split(BLOCK_WORDS))


def default_generator(device: torch.device) -> torch.Generator:
    """The random number generator that a whole process shares on a device."""
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    generators: tuple[torch.Generator, ...] = getattr(torch, device.type).default_generators
    return generators[device.index]


@functools.cache
def describe_device(device: torch.device) -> str | None:
    """Its model, or None if there is no such device here."""
    if device.type != "cuda":
        return device.type if getattr(torch, device.type).is_available() else None
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        return None
    return torch.cuda.get_device_name(device)


def is_on_host(tensor: torch.Tensor) -> bool:
    """Whether its items are in the host's memory, and not in a device's."""
    return tensor.is_cpu


def items_of(tensor: torch.Tensor, name: str) -> Items:
    """The items of a tensor under a name, where they are."""
    if is_on_host(tensor):
        return Memory(tensor).named(name)
    return DeviceTensor.of(tensor, name)


def device_for(device: torch.device) -> Device:
    """What copies from the device of this name."""
    return Cuda(device) if device.type == "cuda" else Device()


def _bytes(tensor: DeviceTensor, part: torch.Tensor) -> TensorBytes:
    return TensorBytes(tensor.name, tensor.dtype, tensor.shape, bytes_of(part), order=tensor.order)
