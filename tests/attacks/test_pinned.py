"""A host that changes the region under a running process, which relies on what it has pinned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plinius.errors import PliniusError, RegionError, SealError
from plinius.mirror import Mirror
from plinius.slots import newest_snapshot
from plinius.slots.layout import commit_word
from unit.mirroring import KEY


def trained(path: Path, until: int, value: float = 1.0) -> tuple[dict[str, object], Mirror]:
    """A running run that has mirrored some iterations."""
    state: dict[str, object] = {"weights": torch.zeros(30_000), "frozen": torch.ones(40_000)}
    mirror = Mirror.open(path, KEY, state)
    mirror.mirror_in()
    for iteration in range(1, until + 1):
        state["weights"].fill_(value * iteration)  # type: ignore[attr-defined]
        mirror.mirror_out(iteration)
    return state, mirror


def write(path: Path, raw: bytes, at: int = 0) -> None:
    """What a host does: the same file, with other bytes."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(raw)


def test_an_older_copy_is_not_taken_for_the_newest(tmp_path: Path) -> None:
    """A process that committed 10 does not take back 5."""
    path = tmp_path / "run.region"
    _, mirror = trained(path, 5)
    older = path.read_bytes()
    with mirror:
        for iteration in range(6, 11):
            mirror.mirror_out(iteration)
        write(path, older)
        with pytest.raises(SealError, match="Commit 11 in the mirror|Commit 10 in the mirror"):
            mirror.mirror_in()
        assert mirror.commits == 10


def test_another_run_put_in_its_place_is_not_continued(tmp_path: Path) -> None:
    """A trainer of run A does not seal as run B: what it commits next is A's, or refused."""
    path, other = tmp_path / "a.region", tmp_path / "b.region"
    trained(other, 4)[1].close()
    state, mirror = trained(path, 4)
    run = mirror.run_id
    write(path, other.read_bytes())
    with mirror:
        state["weights"].fill_(9)  # type: ignore[attr-defined]
        try:
            mirror.mirror_out(5)
        except PliniusError:
            return
        assert mirror.run_id == run
        with pytest.raises(PliniusError):
            newest_snapshot(copy_of(path), KEY)


def copy_of(path: Path) -> Path:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize("shown", [0, 2, 9])
def test_commit_words_are_read_once(shown: int, tmp_path: Path) -> None:
    """Whatever the host writes there, the next commit follows the last one."""
    path = tmp_path / "run.region"
    state, mirror = trained(path, 4)
    with mirror:
        layout, run = mirror._slots._pinned.layout, mirror._slots.run_id
        for slot in (0, 1):
            counter = shown + (shown + slot) % 2 if shown else 0
            word = commit_word(run, counter) if counter else 0
            write(path, word.to_bytes(8, "little"), layout.slot(slot))
        state["weights"].fill_(5)  # type: ignore[attr-defined]
        mirror.mirror_out(5)
        assert mirror.commits == 5
        mirror.mirror_in()
        assert float(state["weights"][0]) == 5  # type: ignore[index]


def test_slots_that_move_under_a_process_are_refused(tmp_path: Path) -> None:
    """The directory names another place for the mirror when the process looks for it again."""
    path = tmp_path / "run.region"
    _, mirror = trained(path, 2)
    with mirror:
        known = mirror._slots._pinned
        assert known.span is not None
        mirror._slots._pinned = known._replace(span=replace(known.span, offset=4096))
        mirror._slots._interrupted = True
        with pytest.raises(RegionError, match="was moved under this process"):
            mirror.mirror_in()
        mirror._slots._pinned = known


def test_a_running_process_can_go_back_one_commit_and_continue(tmp_path: Path) -> None:
    """After accept_previous the next honest commits open, unchanged chunks and all."""
    path = tmp_path / "run.region"
    state, mirror = trained(path, 6)
    with mirror:
        at = mirror._slots._pinned.layout.manifest(6)
        write(path, b"\0\0\0\0", at)
        with pytest.raises(SealError, match="Commit 6"):
            mirror.mirror_in()
        assert mirror.mirror_in(accept_previous=True) == 5
        for iteration in range(6, 10):
            state["weights"].fill_(iteration)  # type: ignore[attr-defined]
            mirror.mirror_out(iteration)
            assert newest_snapshot(copy_of(path), KEY).digest() == mirror.digest(iteration)


def test_the_commit_before_must_be_the_one_that_the_newest_names(tmp_path: Path) -> None:
    """Its own digest is in the newest manifest: another commit in its slot is refused."""
    path = tmp_path / "run.region"
    _, mirror = trained(path, 6)
    layout = mirror._slots._pinned.layout
    with mirror:
        mirror.mirror_in()
        older = copy_of(path).read_bytes()[layout.slot(3) : layout.slot(3) + layout.slot_bytes]
        mirror.mirror_out(7)
        mirror.mirror_out(8)
        mirror.mirror_in()
        write(path, older[8:], layout.slot(7) + 8)  # commit 5 in the place of commit 7
        write(path, b"\0" * 64, layout.chunks(8))
        with pytest.raises(SealError, match="Commit 7"):
            mirror.mirror_in(accept_previous=True)
