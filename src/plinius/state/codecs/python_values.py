"""Codecs of single values: numbers, text, times, paths.

Long text and long bytes become a tensor of bytes. A float that JSON cannot write (NaN, infinity)
becomes the hex digits of its 8 bytes, so that every bit is restored.
"""

import datetime
import pathlib
import struct
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch

from plinius.jsonvalue import Json
from plinius.state.codec import CODECS, Codec, Decoder, Encoder, refused

LARGE_BYTES = 1024
"""Bytes and texts above this are tensors, not part of the JSON."""

_PATHS = {
    cls.__name__: cls
    for cls in (
        pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath
    )
}  # fmt: skip


def _encode_bytes(encoder: Encoder, data: bytes, path: str) -> Json:
    if len(data) <= LARGE_BYTES or encoder.in_key:
        return data.hex()
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return {"tensor": encoder.tensor(tensor, path)}


def _decode_bytes(decoder: Decoder, payload: Any, path: str) -> bytes:
    if isinstance(payload, str):
        return bytes.fromhex(payload)
    return bytes(decoder.value(payload, path).numpy().data)


def _encode_text(encoder: Encoder, value: str, path: str) -> Json:
    if len(value) <= LARGE_BYTES or encoder.in_key:
        return str.__str__(value)
    return {"text": _encode_bytes(encoder, value.encode("utf-8", "surrogatepass"), path)}


def _decode_text(decoder: Decoder, payload: Any, live: Any, path: str) -> str:
    return _decode_bytes(decoder, payload, path).decode("utf-8", "surrogatepass")


def _encode_float(encoder: Encoder, value: float, path: str) -> Json:
    return struct.pack(">d", value).hex()


def _decode_float(decoder: Decoder, payload: Any, live: Any, path: str) -> float:
    (value,) = struct.unpack(">d", bytes.fromhex(payload))
    return float(value)


def _encode_bytearray(encoder: Encoder, value: bytearray, path: str) -> Json:
    return _encode_bytes(encoder, bytes(value), path)


def _decode_bytearray(decoder: Decoder, payload: Any, live: Any, path: str) -> bytearray:
    new = live if type(live) is bytearray else bytearray()
    new[:] = _decode_bytes(decoder, payload, path)
    return decoder.remember(path, new)  # type: ignore[no-any-return]


def _encode_time(encoder: Encoder, value: Any, path: str) -> Json:
    zone = getattr(value, "tzinfo", None)
    if zone is None:
        stored: Json = None
    elif type(zone) is zoneinfo.ZoneInfo and zone.key:
        stored = zone.key
    elif type(zone) is datetime.timezone:
        stored = zone.utcoffset(None).total_seconds()
    else:
        raise refused(path, f"has a time zone of class {type(zone).__qualname__}")
    plain = value.replace(tzinfo=None) if zone is not None else value
    return [plain.isoformat(), stored, getattr(value, "fold", 0)]


def _decode_time(cls: Any) -> Any:
    def decode(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
        text, zone, fold = payload
        value = cls.fromisoformat(text)
        if cls is datetime.date:
            return value
        if isinstance(zone, str):
            zone = zoneinfo.ZoneInfo(zone)
        elif zone is not None:
            zone = datetime.timezone(datetime.timedelta(seconds=zone))
        return value.replace(tzinfo=zone, fold=fold)

    return decode


def _decode_range(decoder: Decoder, payload: Any, live: Any, path: str) -> range:
    return range(*(decoder.value(node, path) for node in payload))


CODECS.add(
    Codec("int", (int,), lambda e, v, p: hex(v), lambda d, payload, live, p: int(payload, 16)),
    Codec("float", (float,), _encode_float, _decode_float),
    Codec("complex", (complex,),
         lambda e, v, p: [e.node(v.real, p), e.node(v.imag, p)],
         lambda d, payload, live, p: complex(*(d.value(node, p) for node in payload))),
    Codec("str", (str,), _encode_text, lambda d, payload, live, p: d.value(payload, p)),
    Codec("text", (), _encode_text, _decode_text),
    Codec("bytes", (bytes,), _encode_bytes,
         lambda d, payload, live, p: _decode_bytes(d, payload, p)),
    Codec("bytearray", (bytearray,), _encode_bytearray, _decode_bytearray, shared=True),
    Codec("size", (torch.Size,), lambda e, v, p: list(v), lambda d, v, live, p: torch.Size(v)),
    Codec("range", (range,),
         lambda e, v, p: [e.node(n, p) for n in (v.start, v.stop, v.step)], _decode_range),
    Codec("slice", (slice,),
         lambda e, v, p: [e.node(n, p) for n in (v.start, v.stop, v.step)],
         lambda d, payload, live, p: slice(*(d.value(node, p) for node in payload))),
    Codec("decimal", (Decimal,), lambda e, v, p: str(v), lambda d, v, live, p: Decimal(v)),
    Codec("fraction", (Fraction,), lambda e, v, p: str(v), lambda d, v, live, p: Fraction(v)),
    Codec("datetime", (datetime.datetime,), _encode_time, _decode_time(datetime.datetime)),
    Codec("date", (datetime.date,), _encode_time, _decode_time(datetime.date)),
    Codec("time", (datetime.time,), _encode_time, _decode_time(datetime.time)),
    Codec("timedelta", (datetime.timedelta,),
         lambda e, v, p: [v.days, v.seconds, v.microseconds],
         lambda d, v, live, p: datetime.timedelta(*v)),
    Codec("path", (*_PATHS.values(),),
         lambda e, v, p: [type(v).__name__, e.node(str(v), p)],
         lambda d, v, live, p: _PATHS[v[0]](d.value(v[1], p))),
    Codec("dtype", (torch.dtype,),
         lambda e, v, p: str(v).removeprefix("torch."), lambda d, v, live, p: getattr(torch, v)),
    Codec("device", (torch.device,),
         lambda e, v, p: str(v), lambda d, v, live, p: torch.device(v)),
)  # fmt: skip
