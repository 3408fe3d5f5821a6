"""Snapshots: their bytes, their order, their digest."""

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from plinius.jsonvalue import Json, to_json
from plinius.snapshot import ITEM_BYTES, Snapshot, TensorBytes


def test_the_digest_tells_states_apart_and_nothing_else() -> None:
    """Order, identity and environment do not enter; every byte and name does."""
    tensor = TensorBytes("a", "uint8", (3,), memoryview(b"abc"))
    other = TensorBytes("b", "uint8", (0,), memoryview(b""))
    base = Snapshot(1, (tensor, other), {"x": 0.1}, {"seed": 1}, {"threads": 1})
    same = Snapshot(1, (other, tensor), {"x": 0.1}, {"seed": 2}, {})
    assert base.digest() == same.digest()
    changed = [
        dataclasses.replace(base, iteration=2),
        dataclasses.replace(base, values={"x": 0.2}),
        dataclasses.replace(base, tensors=(tensor,)),
        dataclasses.replace(base, tensors=(dataclasses.replace(tensor, name="c"), other)),
        dataclasses.replace(base, tensors=(dataclasses.replace(tensor, shape=(3, 1)), other)),
        dataclasses.replace(base, tensors=(dataclasses.replace(tensor, dtype="int8"), other)),
        dataclasses.replace(
            base, tensors=(dataclasses.replace(tensor, data=memoryview(b"abd")), other)
        ),
    ]
    digests = {base.digest(), *(snapshot.digest() for snapshot in changed)}
    assert len(digests) == len(changed) + 1


def test_a_tensor_that_does_not_fill_its_shape_is_refused() -> None:
    """Before anyone maps it."""
    with pytest.raises(ValueError, match="do not fill"):
        TensorBytes("a", "float32", (2,), memoryview(b"1234"))


def test_the_order_in_memory_does_not_enter_the_digest() -> None:
    """Equal items in rows or in channels_last are one state."""
    rows = np.arange(120, dtype="<f4").reshape(2, 3, 4, 5)
    laid = np.ascontiguousarray(rows.transpose(0, 2, 3, 1))
    one = TensorBytes("a", "float32", rows.shape, rows.reshape(-1).view("u1").data)
    other = TensorBytes(
        "a", "float32", rows.shape, laid.reshape(-1).view("u1").data, order=(0, 2, 3, 1)
    )
    assert bytes(one.data) != bytes(other.data)
    assert bytes(one.row_major()) == bytes(other.row_major())
    assert Snapshot(0, (one,), {}, {}, {}).digest() == Snapshot(0, (other,), {}, {}, {}).digest()


def test_the_worked_example_of_the_format_page_is_true() -> None:
    """Its parts, its bytes and its digest."""
    page = (Path(__file__).parents[2] / "docs" / "formats" / "mirror.md").read_text("utf-8")
    stored, rows = "000003000100040002000500", "000001000200030004000500"
    w = TensorBytes("w", "int16", (2, 3), memoryview(bytes.fromhex(stored)), order=(1, 0))
    b = TensorBytes("b", "uint8", (0,), memoryview(b""))
    values: dict[str, Json] = {"": {"dict": [["loss", 0.5]]}, "~rng": None, "~objects": {}}
    parts = [
        to_json({"iteration": 7, "values": values}),
        b'["b","uint8",[0]]', b"", b'["w","int16",[2,3]]', bytes.fromhex(rows),
    ]  # fmt: skip
    sha = hashlib.sha256(b"plinius state 1\n")
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    digest = Snapshot(7, (w, b), values, {}, {}).digest()
    assert digest == sha.hexdigest()
    shown = [parts[0].decode(), parts[1].decode(), parts[3].decode(), stored, rows, digest]
    assert [text for text in shown if text not in page] == []


def test_the_item_sizes_of_the_format_page_are_those_of_the_code() -> None:
    """Every dtype, in its row."""
    page = (Path(__file__).parents[2] / "docs" / "formats" / "mirror.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (`.+`) \|$", page, re.MULTILINE)
    found = {name: int(size) for size, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert found == ITEM_BYTES


def test_json_has_one_form_for_each_value() -> None:
    """As docs/formats/mirror.md says: ASCII, sorted by code point, exact floats, none that is not
    finite.
    """
    assert to_json([-0.0, 1e22, 1e16, 123456789.0, 0.1, 1e-05, 1, 1.0]) == (
        b"[-0.0,1e+22,1e+16,123456789.0,0.1,1e-05,1,1.0]"
    )
    assert to_json("é\u2028\U0001f600\x7f\x00/\n\ud800") == (
        b'"\\u00e9\\u2028\\ud83d\\ude00\\u007f\\u0000/\\n\\ud800"'
    )
    assert to_json({"é": 1, "~": 2, "B": 3, "": 4}) == b'{"":4,"B":3,"~":2,"\\u00e9":1}'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json(value)
