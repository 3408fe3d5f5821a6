"""Splits: every record in one part, classes in proportion, and the same again by the seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plinius.data.records import ArraySpec, Source
from plinius.sources.split import split
from unit.refusals import refusal


def numbered(labels: list[int]) -> Source:
    xs = np.arange(len(labels), dtype="<u4")
    ys = np.array(labels, "<u2")
    return Source(
        "s",
        len(labels),
        ArraySpec(np.dtype("<u4"), ()),
        ArraySpec(np.dtype("<u2"), ()),
        lambda: ((xs[i, ...], ys[i, ...]) for i in range(len(labels))),
        about={"ids": [f"r{i}" for i in range(len(labels))]},
    )


def members(part: Source) -> list[int]:
    return [int(x) for x, _ in part]


@given(st.integers(20, 200), st.integers(0, 5), st.booleans())
@settings(max_examples=50, deadline=None)
def test_every_record_is_in_one_part(count: int, seed: int, stratify: bool) -> None:
    """With its id; the parts keep the order of the source, and sizes are those asked for."""
    source = numbered([i % 3 for i in range(count)])
    parts = split(source, (0.6, 0.2, 0.2), seed, stratify)
    assert list(parts) == ["train", "validation", "test"]
    found = [members(part) for part in parts.values()]
    assert sorted(number for part in found for number in part) == list(range(count))
    assert all(numbers == sorted(numbers) for numbers in found)
    for part, numbers, fraction in zip(parts.values(), found, (0.6, 0.2, 0.2), strict=True):
        assert part.about["ids"] == [f"r{i}" for i in numbers]
        assert abs(part.count - fraction * count) <= 1


def test_the_seed_decides() -> None:
    """The same seed gives the same parts, another one others."""
    source = numbered([0] * 100)
    first, again, other = (members(split(source, (0.5, 0.5), s)["test"]) for s in (1, 1, 2))
    assert first == again != other


def test_a_stratified_split_keeps_proportions() -> None:
    """Rare classes are in every part, to within one record of the fraction."""
    labels = [0] * 900 + [1] * 90 + [2] * 10
    for part, fraction in zip(
        split(numbered(labels), (0.8, 0.1, 0.1), 7, stratify=True).values(),
        (0.8, 0.1, 0.1),
        strict=True,
    ):
        counts = np.bincount([int(y) for _, y in part], minlength=3)
        assert np.abs(counts - fraction * np.array([900, 90, 10])).max() <= 1


def test_classes_of_one_record_do_not_all_fall_into_one_part() -> None:
    """What rounding takes from a part in one class comes back in another."""
    parts = split(numbered(list(range(100))), (0.5, 0.5), 0, stratify=True)
    assert {part.count for part in parts.values()} == {50}


@pytest.mark.parametrize(
    ("fractions", "sentence"),
    [
        ((1.0,), "1.0 is no split."),
        ((0.5, 0.6), "0.5,0.6 is no split."),
        ((1.5, -0.5), "1.5,-0.5 is no split."),
        ((0.25,) * 4, "0.25,0.25,0.25,0.25 is no split."),
        ((float("nan"), 1.0), "nan,1.0 is no split."),
        ((0.999, 0.001), "10 records of s leave none for test."),
    ],
)
def test_a_split_that_cannot_be_is_refused(fractions: tuple[float, ...], sentence: str) -> None:
    """Before anything is sealed."""
    source = numbered([0] * 10)
    assert refusal(lambda: next(iter(split(source, fractions).values()))).startswith(sentence)
