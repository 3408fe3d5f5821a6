"""Copies of the bytes of tensors, so that these can change while the copies are sealed."""

import itertools
from array import array
from collections.abc import Container, Sequence

import numpy as np

from plinius.pm.private_memory import gather
from plinius.snapshot import TensorBytes
from plinius.state.encoding_cache import is_gradient


class Copies:
    """Copies in memory that is used again for each commit."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray())
        self._sources: list[TensorBytes | None] = []  # without gradients, which are not kept
        self._copies: list[TensorBytes] = []

    def of(self, tensors: Sequence[TensorBytes], shared: Container[str]) -> list[TensorBytes]:
        """The tensors with copies of their bytes; those whose names are in `shared` themselves."""
        copied = [it for it in tensors if it.name not in shared]
        sizes = [it.nbytes for it in copied]
        if sizes != [it.nbytes for it in self._copies]:
            self._copies = self._laid_out(copied)
        else:
            self._copies = [
                copy if it is source else it.with_data(copy.data)
                for it, source, copy in zip(copied, self._sources, self._copies, strict=True)
            ]
        self._sources = [None if is_gradient(it.name) else it for it in copied]
        gather(self._buffer[: sum(sizes)], [it.address for it in copied], array("Q", sizes))
        copies = iter(self._copies)
        return [it if it.name in shared else next(copies) for it in tensors]

    def _laid_out(self, tensors: Sequence[TensorBytes]) -> list[TensorBytes]:
        total = sum(it.nbytes for it in tensors)
        if len(self._buffer) < total:
            self._buffer = np.empty(total, np.uint8).data
        ends = itertools.accumulate(it.nbytes for it in tensors)
        return [
            it.with_data(self._buffer[end - it.nbytes : end])
            for it, end in zip(tensors, ends, strict=True)
        ]
