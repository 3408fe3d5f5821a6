"""Records from a map-style dataset of Python, such as any torch.utils.data.Dataset with a length.

PyTorch is not imported: a tensor is read as an array.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from plinius.data.records import ABSENT, Array, ArraySpec, Record, Source
from plinius.errors import SourceError


class MapStyle(Protocol):
    """What has a length and numbered items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def map_style_source(
    dataset: MapStyle, name: str, classes: int = 0, class_names: Sequence[str] = ()
) -> Source:
    """Records of a dataset whose items are pairs (sample, label), or samples alone.

    Each is a tensor, an array or a number; True and False become uint8. Item 0 decides dtypes and
    shapes. Raises SourceError for a dataset without length, and for other items.
    """
    try:
        count = len(dataset)
    except TypeError:
        raise SourceError(
            f"{name} has no length", "Give a map-style dataset, with __len__ and __getitem__"
        ) from None
    if count < 1:
        raise SourceError(f"{name} is empty", "Give a dataset with at least one item")
    sample, label = _record(dataset, 0, name)
    classes = classes or len(class_names)

    def records() -> Iterator[Record]:
        return (_record(dataset, index, name) for index in range(count))

    specs = [ArraySpec(array.dtype, array.shape) for array in (sample, label)]
    return Source(name, count, specs[0], specs[1], records, classes, tuple(class_names))


def _record(dataset: MapStyle, index: int, name: str) -> Record:
    item = dataset[index]
    if isinstance(item, tuple) and len(item) == 1:  # as those of TensorDataset(x)
        item = item[0]
    if not isinstance(item, tuple | list):
        return _array(item, index, name), np.zeros(ABSENT.shape, ABSENT.dtype)
    if len(item) != 2:
        raise SourceError(
            f"Item {index} of {name} has {len(item)} parts", "Give pairs (sample, label)"
        )
    return _array(item[0], index, name), _array(item[1], index, name)


def _array(value: Any, index: int, name: str) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except Exception:  # whatever an object that is no array raises
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise SourceError(
            f"Item {index} of {name} holds a {type(value).__name__} that is no array of numbers",
            "Give tensors, arrays or numbers: a transform of the dataset can make them",
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
