"""A host that writes to the mirror: everything it can change is refused."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import plinius.slots.chunks
from crash.mirrors import newest
from plinius.errors import FormatError, KeyFileError, PliniusError, RegionError, SealError
from plinius.keys import OwnerKey
from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region
from plinius.slots import Slots, newest_snapshot
from plinius.slots.chunks import cut
from plinius.slots.layout import EXTENT
from plinius.snapshot import Snapshot, TensorBytes
from plinius.testing import SimulatedMedium

KEY = OwnerKey(bytes(range(32)))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 256 bytes, so that a small tensor has several."""
    monkeypatch.setattr(plinius.slots.chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(plinius.slots.chunks, "SMALL_BYTES", 64)


def state(iteration: int, size: int = 512) -> Snapshot:
    tensors = [
        TensorBytes(name, "float32", (size // 4,), memoryview(bytes([iteration + 7 * i]) * size))
        for i, name in enumerate("wv")
    ]
    return Snapshot(iteration, tuple(tensors), {"average_loss": 0.5}, {"seed": 1}, {})


def mirrored(commits: int = 3, key: OwnerKey = KEY, size: int = 512) -> bytearray:
    """The image of a region whose mirror holds this many commits."""
    medium = SimulatedMedium(PAGE + 2 * 16384)
    format_region(medium, 16384)
    mirror = Slots.create(Region(medium, "r"), key)
    for iteration in range(commits):
        mirror.write(state(iteration, size))
    return bytearray(medium.images(0, 0)[1])


def mirror_in(image: bytes | bytearray, key: OwnerKey = KEY, **how: bool) -> Snapshot | None:
    mirror = Slots.open(Region(SimulatedMedium(image=bytes(image)), "r"), key)
    assert mirror is not None
    return newest(mirror, **how)


def slots(image: bytes | bytearray) -> tuple[int, int, int]:
    """Where slots 0 and 1 of the mirror lie, and their length."""
    span = Region(SimulatedMedium(image=bytes(image)), "r").extent(EXTENT)
    assert span is not None
    length = (span.length - PAGE) // 2
    return span.offset + PAGE, span.offset + PAGE + length, length


def chunks_at(image: bytes | bytearray, slot: int) -> int:
    """Where the sealed chunks of a slot begin."""
    header = slots(image)[0] - PAGE
    return slot + PAGE + int.from_bytes(image[header + 48 : header + 56], "little")


def used_bytes(image: bytes | bytearray, slot: int, size: int = 512) -> Iterator[int]:
    """The offsets of what a slot says, its sealed manifest and its sealed chunks."""
    yield from range(slot, slot + 128)
    manifest = int.from_bytes(image[slot + 96 : slot + 104], "little")
    yield from range(slot + PAGE, slot + PAGE + manifest)
    for chunk in cut([size, size]):
        start = chunks_at(image, slot) + chunk.offset
        yield from range(start, start + chunk.sealed_bytes)


def test_the_untouched_mirror_opens() -> None:
    """So that what follows proves something."""
    found = mirror_in(mirrored())
    assert found is not None
    assert found.digest() == state(2).digest()


def test_every_flipped_byte_of_the_committed_slot_and_its_manifest_is_refused() -> None:
    """All of them, one bit at a time, at every offset."""
    image = mirrored()
    at = slots(image)[1]  # commit 3 lies in slot 1
    for offset in used_bytes(image, at):
        image[offset] ^= 1 << offset % 8
        with pytest.raises((SealError, RegionError)):
            mirror_in(image)
        image[offset] ^= 1 << offset % 8
    assert mirror_in(image) is not None


def test_every_flipped_byte_of_the_mirrors_header_is_refused() -> None:
    """Its first page says whose it is and where its slots lie."""
    image = mirrored()
    at = slots(image)[0] - PAGE
    for offset in range(at, at + PAGE):
        image[offset] ^= 0x10
        with pytest.raises((SealError, RegionError, FormatError, KeyFileError)):
            mirror_in(image)
        image[offset] ^= 0x10


def test_flipped_bytes_of_a_large_state_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of 300 of the bytes of 3 MB, in chunks of the real size."""
    monkeypatch.undo()
    image = mirrored(2, size=1 << 20)
    at = slots(image)[0]  # commit 2
    rng = random.Random(5)
    medium = SimulatedMedium(image=bytes(image))
    mirror = Slots.open(Region(medium, "r"), KEY)
    assert mirror is not None
    for offset in rng.sample([*used_bytes(image, at, 1 << 20)][64:], 300):
        byte = medium.read(offset, 1)[0]
        medium.store(offset, bytes([byte ^ 1 << rng.randrange(8)]))
        with pytest.raises(SealError):
            newest(mirror)
        medium.store(offset, bytes([byte]))
    assert newest(mirror) is not None


def swapped(image: bytearray, a: int, b: int, length: int) -> bytearray:
    image[a : a + length], image[b : b + length] = image[b : b + length], image[a : a + length]
    return image


def test_swapped_tensors_of_equal_size_are_refused() -> None:
    """Each chunk is bound to its tensor."""
    image = mirrored()
    at = slots(image)[1]
    first, half = chunks_at(image, at), len(cut([512])) * PAGE
    with pytest.raises(SealError, match="Commit 3 in the mirror of r does not open"):
        mirror_in(swapped(image, first, first + half, half))


def test_swapped_chunks_of_one_tensor_are_refused() -> None:
    """Each chunk is bound to its place in the tensor."""
    image = mirrored()
    at = slots(image)[1]
    first = chunks_at(image, at)
    with pytest.raises(SealError):
        mirror_in(swapped(image, first, first + PAGE, PAGE))


def test_an_older_chunk_put_back_in_its_own_place_is_refused() -> None:
    """Each chunk is bound to the commit that sealed it, which the manifest names."""
    medium = SimulatedMedium(image=bytes(mirrored(3)))
    mirror = Slots.open(Region(medium, "r"), KEY)
    assert mirror is not None
    newest(mirror)
    old = bytearray(medium.images(0, 0)[1])
    for iteration in (3, 4):
        mirror.write(state(iteration))
    image = bytearray(medium.images(0, 0)[1])
    at = chunks_at(image, slots(image)[1])
    for chunk in cut([512, 512]):
        forged, start = bytearray(image), at + chunk.offset
        forged[start : start + PAGE] = old[start : start + PAGE]
        with pytest.raises(SealError, match="Commit 5"):
            mirror_in(forged)


def test_an_unchanged_chunk_cannot_be_exchanged_for_another() -> None:
    """What lies in a slot since an older commit is opened under that commit, and no other."""
    rests = [state(0).tensors[0], state(0).tensors[1]]

    def resting(iteration: int) -> Snapshot:
        moving = replace(rests[1], data=memoryview(bytes([iteration]) * 512))
        return Snapshot(iteration, (rests[0], moving), {}, {}, {}, ["never written to", None])

    images = []
    for _ in range(2):
        medium = SimulatedMedium(PAGE + 2 * 16384)
        format_region(medium, 16384)
        mirror = Slots.create(Region(medium, "r"), KEY)
        for iteration in range(6):
            mirror.write(resting(iteration))
        images.append(bytearray(medium.images(0, 0)[1]))
    image, other = images
    zero, one, _ = slots(image)
    newest_slot = chunks_at(image, zero)  # commit 6
    for source in (other[newest_slot:], image[chunks_at(image, one) :]):
        forged = bytearray(image)
        forged[newest_slot : newest_slot + PAGE] = source[:PAGE]
        with pytest.raises(SealError, match="Commit 6"):
            mirror_in(forged)
    assert mirror_in(image) is not None


def test_a_slot_from_another_run_with_the_same_key_is_refused() -> None:
    """Each commit is bound to its run."""
    image, other = mirrored(), mirrored()
    at, length = slots(image)[1], slots(image)[2]
    image[at + 8 : at + length] = other[at + 8 : at + length]
    with pytest.raises(SealError):
        mirror_in(image)
    image[at : at + 8] = other[at : at + 8]  # with its commit word as well
    with pytest.raises(RegionError, match="commit word"):
        mirror_in(image)


def test_a_slot_from_an_older_commit_of_the_run_is_refused_under_a_newer_word() -> None:
    """Each commit is bound to its counter."""
    medium = SimulatedMedium(image=bytes(mirrored(3)))
    mirror = Slots.open(Region(medium, "r"), KEY)
    assert mirror is not None
    newest(mirror)
    old = bytearray(medium.images(0, 0)[1])
    for iteration in (3, 4):
        mirror.write(state(iteration))
    image = bytearray(medium.images(0, 0)[1])
    at, length = slots(image)[1], slots(image)[2]
    image[at + 8 : at + length] = old[at + 8 : at + length]
    with pytest.raises(SealError, match="Commit 5"):
        mirror_in(image)


def word_zeroed(image: bytearray) -> None:
    at = slots(image)[1]
    image[at : at + 8] = bytes(8)


def word_copied(image: bytearray) -> None:
    zero, one, _ = slots(image)
    image[zero : zero + 8] = image[one : one + 8]


@pytest.mark.parametrize("forge", [word_zeroed, word_copied], ids=lambda f: f.__name__)
def test_commit_words_that_no_commit_leaves_are_refused(forge: Callable[[bytearray], None]) -> None:
    """Hiding the newest commit by its word alone does not bring the one before back."""
    image = mirrored()
    forge(image)
    with pytest.raises(RegionError, match="damaged or altered: .*commit word"):
        mirror_in(image)


def test_the_wrong_key_is_named_as_such() -> None:
    """Both public key ids are shown, nothing else."""
    other = OwnerKey(bytes(32))
    with pytest.raises(
        KeyFileError,
        match=f"was sealed with key {KEY.id.hex()}, but this is key {other.id.hex()}",
    ):
        mirror_in(mirrored(), other)


def test_a_huge_declared_manifest_is_refused_before_memory_is_taken() -> None:
    """Lengths are bounded by the slot."""
    image = mirrored()
    at = slots(image)[1]
    for field in (96, 97, 100):
        forged = bytearray(image)
        forged[at + field : at + field + 8] = (2**62).to_bytes(8, "little")
        with pytest.raises(SealError):
            mirror_in(forged)


def test_a_newest_commit_that_does_not_open_is_given_up_only_on_request() -> None:
    """Accepting the commit before is a decision, and the run then continues from it."""
    image = mirrored()
    image[chunks_at(image, slots(image)[1])] ^= 1
    with pytest.raises(SealError, match="train with --accept-previous"):
        mirror_in(image)
    medium = SimulatedMedium(image=bytes(image))
    mirror = Slots.open(Region(medium, "r"), KEY)
    assert mirror is not None
    found = newest(mirror, accept_previous=True)
    assert found is not None
    assert found.digest() == state(1).digest()
    mirror.write(state(9))
    after = mirror_in(medium.images(0, 0)[1])
    assert after is not None
    assert after.digest() == state(9).digest()


def test_truncated_regions_are_refused(tmp_path: Path) -> None:
    """At every page and at odd lengths, never with an error of another kind."""
    path = tmp_path / "r"
    with Region.create(path, 0) as region:
        Slots.create(region, KEY).write(state(0))
    whole = path.read_bytes()
    for length in [*range(0, len(whole), PAGE), 7, 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(PliniusError):
            newest_snapshot(path, KEY)
    path.write_bytes(whole)
    assert newest_snapshot(path, KEY).digest() == state(0).digest()
