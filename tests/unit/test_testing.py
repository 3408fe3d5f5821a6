"""The public medium for proofs: its example runs, and its bounds are those of a real one."""

import doctest

import pytest

import plinius.testing
from plinius.errors import RegionError
from plinius.pm.medium import Granularity
from plinius.testing import PlainMedium, SimulatedMedium, check_every_stop


def test_the_example_of_the_module_does_what_it_says() -> None:
    """A protocol that is right, and one that lacks a fence."""
    found = doctest.testmod(plinius.testing, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 5
    assert found.failed == 0


@pytest.mark.parametrize("medium", [PlainMedium(bytes(4096)), SimulatedMedium(4096)])
def test_what_lies_outside_the_medium_is_refused(medium: PlainMedium) -> None:
    """As on a mapped file."""
    for act in (
        lambda: medium.read(4090, 8),
        lambda: medium.store(-1, b"x"),
        lambda: medium.flush(0, 4097),
    ):
        with pytest.raises(RegionError, match="lie outside the medium of 4,096"):
            act()
    with pytest.raises(ValueError, match="multiple of 8"):
        medium.store_word(4, 1)


def test_a_size_that_is_no_multiple_of_the_unit_is_refused() -> None:
    """A word or a sector is durable as a whole."""
    with pytest.raises(ValueError, match="multiple of 512"):
        SimulatedMedium(4096 + 8, granularity=Granularity.PAGE)


def test_a_failed_check_says_where_the_protocol_was_stopped() -> None:
    """In a note of the check's own error."""

    def refuse(image: bytes, finished: bool) -> None:
        assert not any(image)

    with pytest.raises(AssertionError) as failure:
        check_every_stop(SimulatedMedium(64), lambda m: m.write(0, b"x" * 8), refuse)
    assert "stopped before operation" in failure.value.__notes__[0]
