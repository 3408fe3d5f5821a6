"""Private memory, and pieces of memory that are gathered into it by one native call."""

from array import array

import numpy as np
import pytest

from plinius.pm.private_memory import gather, private_memory


def test_pieces_lie_one_behind_the_other() -> None:
    """In the order given, whatever their lengths."""
    rng = np.random.default_rng(1)
    pieces = [rng.integers(0, 256, size, np.uint8) for size in (3, 0, 1000, 1, 64, 4096)]
    out = private_memory(sum(map(len, pieces)))
    gather(out, [piece.ctypes.data for piece in pieces], array("Q", map(len, pieces)))
    assert bytes(out) == b"".join(map(bytes, pieces))


def test_nothing_can_be_gathered() -> None:
    """A state may have no small tensors."""
    gather(memoryview(bytearray()), [], array("Q"))


@pytest.mark.parametrize("sizes", [[4], [4, 3], [4, 5], [4, 4, 0]])
def test_pieces_that_do_not_fill_the_memory_are_refused(sizes: list[int]) -> None:
    """Otherwise the native call would write past its end."""
    piece = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="do not fill"):
        gather(private_memory(8), [piece.ctypes.data] * 2, array("Q", sizes))
