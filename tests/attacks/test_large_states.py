"""What is committed can be read: states at the bounds of what a mirror holds."""

from pathlib import Path
from typing import Any

import pytest
import torch

import plinius.slots.protocol
from plinius.errors import PliniusError, SealError, StateError
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import Slots, newest_snapshot
from plinius.slots.manifest import MAX_MANIFEST_BYTES, encode_manifest, with_values
from plinius.snapshot import Snapshot, TensorBytes
from unit.mirroring import KEY

BOUND = 64 << 20


def named(length: int) -> Snapshot:
    """A state whose one tensor has a name so long."""
    tensor = TensorBytes("n" * length, "uint8", (3,), memoryview(b"abc"))
    return Snapshot(1, (tensor,), {"log": "x"}, {}, {})


def filling(size: int) -> Snapshot:
    """A state whose first manifest has exactly so many bytes."""
    short = named(1)
    tensors, values = with_values(short)
    length = len(encode_manifest(short, tensors, values, "0" * 64, [1], {}))
    return named(size - length + 1)


def refusal(size: int, bound: int) -> str:
    """The sentence about a state of one tensor whose manifest has so many bytes."""
    return (
        f"The state has 1 tensors, whose names and shapes take {size:,} bytes; a mirror holds at "
        f"most {bound:,} bytes of them. Put many small tensors into one (torch.stack, or one NumPy "
        "array)."
    )


def test_a_manifest_at_its_bound_is_written_and_read(place: Path) -> None:
    """64 MiB to the byte."""
    assert MAX_MANIFEST_BYTES == BOUND
    snapshot, path = filling(BOUND), place / "run.region"
    with Region.create(path) as region:
        slots = Slots.create(region, KEY)
        slots.write(snapshot)
        slots.close()
    assert newest_snapshot(path, KEY).digest() == snapshot.digest()


def test_a_manifest_beyond_its_bound_is_refused_before_anything_is_written(place: Path) -> None:
    """One byte more: the exact sentence, and the region stays as it was."""
    path = place / "run.region"
    with Region.create(path) as region:
        slots = Slots.create(region, KEY)
        slots.write(named(5))
        before = path.read_bytes()
        with pytest.raises(StateError) as caught:
            slots.write(filling(BOUND + 1))
        assert str(caught.value) == refusal(BOUND + 1, BOUND)
        assert path.read_bytes() == before
        slots.write(named(6))  # and it goes on
        slots.close()
    assert newest_snapshot(path, KEY).digest() == named(6).digest()


@pytest.mark.parametrize("less", [0, 1])
def test_reading_has_the_bound_of_writing(
    less: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program with a bound lower by one byte would not write, it does not read."""
    snapshot, path = filling(5000), place / "run.region"
    with Region.create(path) as region:
        slots = Slots.create(region, KEY)
        slots.write(snapshot)
        slots.close()
    monkeypatch.setattr(plinius.slots.protocol, "MAX_MANIFEST_BYTES", 5000 - less)
    monkeypatch.setattr(plinius.slots.manifest, "MAX_MANIFEST_BYTES", 5000 - less)
    tensors, values = with_values(snapshot)
    if less:
        with pytest.raises(SealError, match=r"^Commit 1 in the mirror of .* does not open"):
            newest_snapshot(path, KEY)
        with pytest.raises(StateError) as caught:
            encode_manifest(snapshot, tensors, values, "0" * 64, [1], {})
        assert str(caught.value) == refusal(5000, 4999)
    else:
        assert newest_snapshot(path, KEY).digest() == snapshot.digest()
        assert len(encode_manifest(snapshot, tensors, values, "0" * 64, [1], {})) == 5000


def test_a_log_that_grows_beyond_64_mib_of_json_comes_back(place: Path) -> None:
    """Through the bound, in one run, and in a process that knows nothing of it."""
    path = place / "run.region"
    log: list[str] = []
    with Mirror.open(path, KEY, {"log": log}) as mirror:
        for iteration, entries in enumerate((10, 66_000, 68_000), 1):
            log.extend("x" * 1000 for _ in range(entries - len(log)))  # longer ones are tensors
            mirror.mirror_out(iteration)
    assert sum(map(len, log)) > BOUND
    state: dict[str, Any] = {"log": []}
    with Mirror.open(path, KEY, state) as mirror:
        assert mirror.mirror_in() == 3
        assert (state["log"] == log) is True  # else pytest shows how 70 MB differ
        state["log"].append("one more")
        mirror.mirror_out(4)
        assert mirror.mirror_in() == 4
    assert len(state["log"]) == len(log) + 1


def test_a_value_of_34_mb_of_bytes_comes_back(place: Path) -> None:
    """As a tensor of bytes; a text as large as well."""
    path = place / "run.region"
    raw, text = bytes(range(250)) * 136_000, "\N{EURO SIGN}uro" * 3_000_000
    with Mirror.open(path, KEY, {"raw": raw, "text": text}) as mirror:
        mirror.mirror_out(1)
    state: dict[str, Any] = {"raw": b"", "text": ""}
    with Mirror.open(path, KEY, state) as mirror:
        assert mirror.mirror_in() == 1
    assert (state == {"raw": raw, "text": text}) is True
    assert type(state["raw"]) is bytes


def test_fifty_thousand_tensors_come_back(place: Path) -> None:
    """Each with its own name, in two commits."""

    def made(value: float) -> dict[str, Any]:
        return {f"t{number}": torch.full((2,), value + number) for number in range(50_000)}

    path, state = place / "run.region", made(1)
    with Mirror.open(path, KEY, state) as mirror:
        mirror.mirror_out(1)
        state["t49999"].zero_()
        mirror.mirror_out(2)
    fresh = made(0)
    with Mirror.open(path, KEY, fresh) as mirror:
        assert mirror.mirror_in() == 2
    assert all(torch.equal(fresh[name], it) for name, it in state.items())


def test_more_names_than_a_mirror_holds_are_refused_by_mirror_out(place: Path) -> None:
    """With a way out, and the commit before still opens."""
    path = place / "run.region"
    state: dict[str, Any] = {"tensors": [torch.ones(1)]}
    with Mirror.open(path, KEY, state) as mirror:
        mirror.mirror_out(1)
        state["tensors"] = {"n" * 1_000_000 + str(it): torch.ones(1) for it in range(70)}
        with pytest.raises(StateError, match=r"^The state has 7\d tensors, .* Put many small"):
            mirror.mirror_out(2)
        state["tensors"] = [torch.zeros(1)]
        mirror.mirror_out(3)
    assert newest_snapshot(path, KEY).iteration == 3


@pytest.mark.parametrize("size", [2**16 - 20, 2**16, 2**16 + 20, 2**20 - 1, 2**20, 2**20 + 1])
def test_values_around_the_size_of_a_tensor_of_their_own_come_back(size: int, place: Path) -> None:
    """In the manifest below it, in a tensor of bytes from it on, and at each power of two."""
    path = place / "run.region"
    for number, kind in enumerate((bytes(size), "x" * size, ["y" * 100] * (size // 103)), 1):
        state: dict[str, Any] = {"it": kind}
        try:
            with Mirror.open(path, KEY, state) as mirror:
                mirror.mirror_in()
                state["it"] = kind
                mirror.mirror_out(number)
                state["it"] = None
                assert mirror.mirror_in() == number
        except PliniusError as error:
            raise AssertionError(f"{size} {type(kind)}") from error
        assert (state["it"] == kind) is True
