"""Snapshots: their bytes, their order, their digest."""

import dataclasses

import numpy as np
import pytest

from plinius.snapshot import Snapshot, TensorBytes


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
