"""The clear header of a sealed dataset: 256 bytes, see docs/formats/sealed-dataset.md."""

import struct
from dataclasses import dataclass

from plinius import sealing
from plinius.data.records import ABSENT, DTYPES, MAX_COUNT, MAX_DIMS, MAX_RECORD_BYTES, ArraySpec
from plinius.errors import FormatError

MAGIC = b"PLINDATA"
VERSION = 1
ID_BYTES = 16
HEADER_BYTES = 256
MAX_META_BYTES = 2**20

_CLEAR = struct.Struct("<8sII16s32s8sQIBBBB8I8I88s")  # all but the tag
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_FETCH = "Fetch it again from its owner"
assert _CLEAR.size == HEADER_BYTES - sealing.TAG_BYTES


@dataclass(frozen=True)
class DatasetHeader:
    """What a sealed dataset shows without a key. `id` has 16 bytes, `salt` 32, `key_id` 8."""

    id: bytes
    salt: bytes
    key_id: bytes
    count: int
    sample: ArraySpec
    label: ArraySpec
    classes: int
    meta_bytes: int

    @property
    def record_bytes(self) -> int:
        """Bytes of one record in plaintext: sample, then label."""
        return self.sample.nbytes + self.label.nbytes

    @property
    def stride(self) -> int:
        """Bytes of one sealed record."""
        return self.record_bytes + sealing.TAG_BYTES

    @property
    def records_offset(self) -> int:
        """Where the first sealed record starts."""
        return HEADER_BYTES + self.meta_bytes

    @property
    def size(self) -> int:
        """Bytes of the whole sealed dataset."""
        return self.records_offset + self.count * self.stride

    def record_aad_prefix(self) -> bytes:
        """The part of a record's AAD that is the same for all: version, dataset id, count."""
        return struct.pack("<I16sQ", VERSION, self.id, self.count)

    def pack(self) -> bytes:
        """The first 240 bytes of the header: all but the tag."""
        return _CLEAR.pack(
            MAGIC,
            VERSION,
            self.meta_bytes,
            self.id,
            self.salt,
            self.key_id,
            self.count,
            self.classes,
            _CODES[self.sample.dtype],
            len(self.sample.shape),
            _CODES[self.label.dtype],
            len(self.label.shape),
            *_padded(self.sample.shape),
            *_padded(self.label.shape),
            b"",
        )


def parse_header(raw: bytes, size: int, name: str) -> DatasetHeader:
    """Decode the header from `raw`, the first bytes of a sealed dataset of `size` bytes.

    Checks all that can be checked without a key. `name` is used in messages. Raises FormatError.
    """
    if not raw.startswith(MAGIC):
        raise FormatError(f"{name} is not a sealed dataset", "Make one with plinius seal")
    if len(raw) < HEADER_BYTES:
        raise FormatError(f"{name} is truncated: it ends within the header", _FETCH)
    version, meta_bytes, dataset, salt, key_id, count, classes, *rest = _CLEAR.unpack_from(raw)[1:]
    if version != VERSION:
        raise FormatError(
            f"{name} is a sealed dataset of version {version}, and this program reads version "
            f"{VERSION}",
            "Use the release of plinius that made it",
        )
    sample = _array_spec(rest[0], rest[1], rest[4 : 4 + MAX_DIMS])
    label = _array_spec(rest[2], rest[3], rest[4 + MAX_DIMS : 4 + 2 * MAX_DIMS])
    if sample is None or label is None or any(rest[-1]):
        raise FormatError(f"The header of {name} is not valid", _FETCH)
    if not sealing.TAG_BYTES < meta_bytes <= MAX_META_BYTES or not 1 <= count <= MAX_COUNT:
        raise FormatError(f"The header of {name} declares impossible sizes", _FETCH)
    if not 1 <= sample.nbytes + label.nbytes <= MAX_RECORD_BYTES:
        raise FormatError(f"The header of {name} declares impossible sizes", _FETCH)
    header = DatasetHeader(dataset, salt, key_id, count, sample, label, classes, meta_bytes)
    if size != header.size:
        raise FormatError(
            f"{name} has {size} bytes, but its header declares {header.size}: "
            f"it was {'truncated' if size < header.size else 'extended'}",
            _FETCH,
        )
    return header


def _array_spec(code: int, ndim: int, dims: list[int]) -> ArraySpec | None:
    if code not in DTYPES or ndim > MAX_DIMS or any(dims[ndim:]):
        return None
    spec = ArraySpec(DTYPES[code], tuple(dims[:ndim]))
    return spec if spec == ABSENT or all(spec.shape) else None


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape + (0,) * (MAX_DIMS - len(shape))
