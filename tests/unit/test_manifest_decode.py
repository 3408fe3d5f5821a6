"""What a manifest may say, and what is refused of it: docs/formats/mirror.md, section Manifest."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from plinius.slots.layout import Layout
from plinius.slots.manifest import Manifest, decode_manifest, encode_manifest, with_values
from plinius.snapshot import Snapshot, TensorBytes

COMMIT, SALT, OLDER = 6, b"\6" * 32, b"\4" * 32
LAYOUT = Layout(0, 1 << 20, 4096, base=2)
LARGE = memoryview(bytes(70000))
STATE = (
    TensorBytes("a", "uint8", (2, 35000), LARGE, order=(1, 0)),
    TensorBytes("b", "uint8", (70000,), LARGE),
    TensorBytes("c", "int64", (), memoryview(bytes(8))),
)


def encoded(values: Any = None) -> bytes:
    """The manifest of commit 6 of `STATE`, whose first chunk commit 4 sealed."""
    snapshot = Snapshot(9, STATE, values or {"loss": 0.5}, {"seed": 1}, {"threads": 2})
    tensors, plain = with_values(snapshot)
    chunks = 3 if plain else 4
    by = [4] + [COMMIT] * (chunks - 1)
    return encode_manifest(snapshot, tensors, plain, "ab" * 32, by, {4: OLDER})


def decoded(plain: bytes) -> Manifest:
    return decode_manifest(plain, COMMIT, SALT, "digest", LAYOUT)


def at(*path: Any) -> Callable[[Any, Any], None]:
    """Sets what is found at a path of keys and indices."""

    def put(stored: Any, value: Any) -> None:
        for key in path[:-1]:
            stored = stored[key]
        stored[path[-1]] = value

    return put


def test_a_manifest_comes_back() -> None:
    """An older commit's chunk, an order and a number included."""
    found = decoded(encoded())
    assert [(spec.name, spec.order) for spec in found.tensors] == [
        ("a", (1, 0)), ("b", None), ("c", None),
    ]  # fmt: skip
    assert (found.sealed_by, found.salts) == ([4, 6, 6], {4: OLDER, 6: SALT})
    assert (found.iteration, found.values, found.previous) == (9, {"loss": 0.5}, "ab" * 32)


def test_large_values_are_the_last_tensor() -> None:
    """Padded with spaces to a power of two; JSON of a power of two is not padded."""
    for length, padded in ((65536, 65536), (65537, 1 << 17), (1 << 17, 1 << 17)):
        values = {"x": "y" * (length - 8)}
        tensors, plain = with_values(Snapshot(0, (), values, {}, {}))
        assert (plain is None, len(plain or tensors[0].data)) == (length > 65536, padded)
    found = decoded(encoded({"x": "y" * 70000}))
    assert found.values_tensor is not None
    assert (found.values, found.values_tensor.shape) == ({}, (1 << 17,))


CHANGES: list[tuple[Any, Any, str]] = [
    (at("more"), 1, "not of this version"),
    (at("identity"), [], "not of this version"),
    (at("environment"), None, "not of this version"),
    (at("values"), [], "not of this version"),
    (at("iteration"), True, "not of this version"),
    (at("iteration"), 1 << 63, "no count"),
    (at("previous"), "AB" * 32, "64 hex digits"),
    (at("previous"), "ab" * 31, "64 hex digits"),
    (at("tensors", 1, 0), "a", "one name"),
    (at("tensors", 1, 0), "~values", "one name"),
    (at("tensors", 1, 0), 5, "unknown dtype"),
    (at("tensors", 1, 1), ["uint8"], "unknown dtype"),
    (at("tensors", 2, 2), "", "a list is missing"),
    (at("tensors", 2, 2), {}, "a list is missing"),
    (at("tensors", 1), {"b": 1, "uint8": 2, "": 3, "x": 4}, "a list is missing"),
    (at("tensors", 1, 2), [70000.0], "no count"),
    (at("tensors", 1, 2), [1 << 63, 0], "no count"),
    (at("tensors", 1, 2), [1 << 62] * 9, "do not fit"),
    (at("tensors", 1, 2), [LAYOUT.slot_bytes - 8192], "do not fit"),
    (at("tensors", 0, 3), [1], "order that is none"),
    (at("tensors", 0, 3), [1, 1], "order that is none"),
    (at("tensors", 0, 3), [True, False], "no count"),
    (at("tensors", 2, 3), [0], "order that is none"),
    (at("sealed_by"), [[4, 1], [6, 0], [6, 2]], "a chunk is missing"),
    (at("sealed_by"), [[4, 1], [6, 1 << 62]], "a chunk is missing"),
    (at("sealed_by"), [[4, 1], [6, 2.0]], "no count"),
    (at("sealed_by"), [[4, 1, 1], [6, 2]], "another length"),
    (at("sealed_by", 0, 0), 0, "never in this slot"),
    (at("sealed_by", 0, 0), 2, "never in this slot"),
    (at("sealed_by", 0, 0), 5, "never in this slot"),
    (at("sealed_by", 0, 0), 8, "never in this slot"),
    (at("salts"), {}, "a salt or digest is missing"),
    (at("salts", "4"), "AB" * 32, "64 hex digits"),
    (at("salts", "4"), 5, "64 hex digits"),
    (at("salts"), {"04": "44" * 32}, "a salt or digest is missing"),
    (at("salts", "6"), "66" * 32, "salts of other commits"),
    (at("values"), None, "the values are missing"),
]


@pytest.mark.parametrize(("put", "value", "why"), CHANGES)
def test_each_broken_rule_is_refused(put: Any, value: Any, why: str) -> None:
    """As a ValueError, which the slots raise as FormatError, and before memory is taken."""
    stored = json.loads(encoded())
    put(stored, value)
    with pytest.raises(ValueError, match=why):
        decoded(json.dumps(stored).encode())


@pytest.mark.parametrize(
    "last",
    [["~values", "int8", [1 << 17], None], ["~values", "uint8", [1 << 9, 1 << 8], None],
     ["~values", "uint8", [1 << 17], [0]], ["values", "uint8", [1 << 17], None],
     ["~values", "uint8", [65536], None]],
    ids=str,
)  # fmt: skip
def test_values_in_a_tensor_of_another_form_are_refused(last: Any) -> None:
    """One dimension, uint8, row-major, more than 65536 bytes."""
    stored = json.loads(encoded({"x": "y" * 70000}))
    stored["tensors"][-1] = last
    with pytest.raises(ValueError, match="the values are missing"):
        decoded(json.dumps(stored).encode())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"seed":1', b'"seed":1,"seed":1', "a key twice"),
        (b'"seed":1', b'"seed":NaN', "not finite"),
        (b'"seed":1', b'"seed":-Infinity', "not finite"),
        (b'"seed":1', b'"seed":1e999', "not finite"),
        (b'"seed":1', b'"seed":' + b"[" * 200_000 + b"]" * 200_000, "too many levels"),
        (b'"seed":1', b'"seed":"\xff"', "codec can't decode"),
        (b'{"environment"', b'\xef\xbb\xbf{"environment"', "BOM"),
        (b'"loss":0.5}}', b'"loss":0.5}} x', "Extra data"),
    ],
)
def test_json_that_can_be_read_in_two_ways_is_refused(old: bytes, new: bytes, why: str) -> None:
    """Or in none."""
    plain = encoded()
    assert plain.count(old) == 1
    with pytest.raises(ValueError, match=why):
        decoded(plain.replace(old, new))


@pytest.mark.parametrize("plain", [b"", b"null", b"[]", b"7"])
def test_what_is_no_object_is_refused(plain: bytes) -> None:
    """Before anything is looked up in it."""
    with pytest.raises(ValueError, match="the JSON is no object|Expecting value"):
        decoded(plain)


def test_a_reader_reads_512_levels() -> None:
    """As the page promises; a state has at most a few hundred."""
    deep = b"[" * 508 + b"]" * 508
    assert decoded(encoded().replace(b'"seed":1', b'"seed":' + deep)).iteration == 9
