"""The commits that a mirror keeps, going back to one of them, and what a host does to them."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plinius.errors import (
    KeyFileError,
    MismatchError,
    PliniusError,
    RegionFullError,
    SealError,
    StateError,
)
from plinius.history.kept_commits import PREFIX, kept_names, read_head
from plinius.history.reading import snapshot_of
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.medium import PAGE
from plinius.pm.region import Region
from plinius.slots import newest_snapshot
from unit.mirroring import KEY


class Loop:
    """A loop that counts in a tensor, beside one that never changes."""

    def __init__(self) -> None:
        self.x = torch.zeros(9000)
        self.state = {"x": self.x, "frozen": torch.full((70_000,), 5.0), "drawn": 0.0}

    def step(self) -> None:
        self.x.add_(1)
        self.state["drawn"] = float(torch.rand(()))


MODES = [{}, {"overlap": True}, {"overlap": True, "trust_versions": True}]


def trained(path: Path, until: int, best: int | None = None, **how: object) -> None:
    """Train a run, and name the commit of one iteration "best"."""
    loop = Loop()
    with Mirror.open(path, KEY, loop.state, **how) as mirror:  # type: ignore[arg-type]
        for iteration in range(mirror.mirror_in() + 1, until + 1):
            loop.step()
            mirror.mirror_out(iteration)
            if iteration == best:
                assert mirror.keep("best")


def kept(path: Path) -> list[str]:
    with Region.open(path, writable=False) as region:
        return sorted(kept_names(region))


@pytest.mark.parametrize("how", MODES, ids=str)
def test_kept_commits_are_the_states_that_they_were(how: dict[str, bool], tmp_path: Path) -> None:
    """The last two of each third iteration, and the best: as runs that ended there."""
    trained(tmp_path / "r", 10, best=4, keep=2, keep_every=3, **how)
    assert kept(tmp_path / "r") == ["6", "9", "best"]
    for commit, iteration in (("best", 4), ("4", 4), ("6", 6), ("9", 9), ("10", 10)):
        found = snapshot_of(tmp_path / "r", KEY, commit)
        assert found.iteration == iteration
        (x,) = [one.data.cast("f") for one in found.tensors if one.name == "x"]
        assert set(x) == {float(iteration)}


def test_what_is_kept_stays_for_later_processes(tmp_path: Path) -> None:
    """One that keeps nothing drops nothing; one that keeps fewer drops the oldest."""
    path = tmp_path / "r"
    trained(path, 4, keep=3)
    trained(path, 6)
    assert kept(path) == ["2", "3", "4"]
    trained(path, 7, keep=2)
    assert kept(path) == ["4", "7"]
    assert snapshot_of(path, KEY, "4").iteration == 4


@pytest.mark.parametrize("how", MODES, ids=str)
def test_a_run_that_went_back_continues_from_there_and_says_so(
    how: dict[str, bool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends with the same bits; every later manifest names the return; the counter goes on."""
    path = tmp_path / "r"
    torch.manual_seed(1)
    trained(tmp_path / "whole", 8)
    torch.manual_seed(1)
    trained(path, 6, keep=3)
    loop = Loop()
    with Mirror.open(path, KEY, loop.state, **how) as mirror:
        with caplog.at_level(logging.WARNING, "plinius"):
            assert mirror.mirror_in(back_to=4) == 4
        said = "WENT BACK from commit 6 (iteration 6) to commit 4 (iteration 4)"
        assert said in caplog.text
        assert [tuple(one) for one in mirror.returns] == [(6, 6, 4, 4)]
        for iteration in range(5, 9):
            loop.step()
            mirror.mirror_out(iteration)
        mirror.wait()
        assert mirror.commits == 10
    assert newest_snapshot(path, KEY).digest() == newest_snapshot(tmp_path / "whole", KEY).digest()
    with Mirror.open(path, KEY, Loop().state) as mirror:
        assert mirror.mirror_in() == 8
        assert [tuple(one) for one in mirror.returns] == [(6, 6, 4, 4)]
        assert mirror.mirror_in(back_to="6") == 6  # the line that was left is not lost


def test_a_return_without_a_commit_after_it_changes_nothing(tmp_path: Path) -> None:
    """Killed before the next commit, the run is where it was."""
    path = tmp_path / "r"
    trained(path, 6, keep=3)
    with Mirror.open(path, KEY, Loop().state) as mirror:
        mirror.mirror_in(back_to="5")
    with Mirror.open(path, KEY, Loop().state) as mirror:
        assert mirror.mirror_in() == 6
        assert mirror.returns == []


def test_what_cannot_be_kept_or_gone_back_to_is_refused_by_its_sentence(tmp_path: Path) -> None:
    """Names, counts, and the moment; nothing changes."""
    path = tmp_path / "r"

    def refusal(call: Callable[[], object], kind: type[PliniusError]) -> str:
        with pytest.raises(kind) as caught:
            call()
        return str(caught.value)

    for options in ({"keep": 17}, {"keep": -1}, {"keep_every": 2}, {"keep": 1, "keep_every": 0}):
        said = {"keep": 0, "keep_every": 1} | options
        assert refusal(lambda o=options: Mirror.open(path, KEY, {}, **o), StateError) == (  # type: ignore[misc]
            f"keep={said['keep']}, keep_every={said['keep_every']} do not say what to keep. Give "
            "keep from 1 to 16 and keep_every from 1, or leave both out."
        )
    with Mirror.open(path, KEY, Loop().state) as mirror:
        assert refusal(lambda: mirror.keep("best"), StateError) == (
            "There is no commit to keep yet. Call mirror_out before keep."
        )
        assert refusal(lambda: mirror.mirror_in(back_to=3), MismatchError) == (
            f"{path} has no commit to go back to. Train there first: plinius train."
        )
        assert mirror.mirror_in() == 0
        mirror.mirror_out(1)
        for name in ("", "Best", "7", "newest", "a" * 33, "a/b", "é"):
            assert refusal(lambda name=name: mirror.keep(name), StateError) == (  # type: ignore[misc]
                f"{name!r} is no name for a commit. Give a word of 1 to 32 small letters, digits, "
                "- and _, such as best."
            )
        assert refusal(lambda: mirror.mirror_in(back_to=3), MismatchError) == (
            f"{path} keeps no commit of iteration 3. Choose one of those that plinius region log "
            "lists with the key."
        )
        assert refusal(lambda: mirror.mirror_in(back_to="best"), MismatchError) == (
            f"{path} keeps no commit best. Choose one of those that plinius region log lists with "
            "the key."
        )
    with Mirror.open(path, KEY, Loop().state) as mirror:
        assert "Call mirror_in before" in refusal(lambda: mirror.keep("best"), StateError)
    with pytest.raises(KeyFileError):
        snapshot_of(path, OwnerKey(bytes(32)), "best")


def test_a_full_disk_keeps_what_was_kept_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged; the next one that has room is kept."""
    path, loop = tmp_path / "r", Loop()
    with Mirror.open(path, KEY, loop.state, keep=2) as mirror:
        mirror.mirror_out(1)
        with monkeypatch.context() as full:

            def refuse(*_: object) -> None:
                raise RegionFullError("The disk has no room", "Free some space")

            full.setattr(Region, "add_extent", refuse)
            full.setattr(Region, "replace_extent", refuse)
            mirror.mirror_out(2)
            assert mirror.failure is None
            assert mirror.keep("best") is False
        assert "Commit 2 is not kept as best: The disk has no room" in caplog.text
        assert (mirror.committed, kept_names(mirror._region).keys()) == (2, {"1"})
        mirror.mirror_out(3)
        assert mirror.keep("best") is True
    assert kept(path) == ["1", "3", "best"]


def overwrite(path: Path, name: str, at: int, data: bytes) -> None:
    """Write into a kept extent, as a host can."""
    with Region.open(path, writable=False) as region:
        span = kept_names(region)[name]
    with path.open("r+b") as file:
        file.seek(span.offset + at)
        file.write(data)


def test_a_kept_commit_cannot_be_put_in_the_place_of_another(tmp_path: Path) -> None:
    """Bytes of commit 2 under the name of 3 or as the best, of another run or key, or flipped."""
    path, other = tmp_path / "r", tmp_path / "other"
    trained(path, 5, best=4, keep=3)
    trained(other, 5, best=4, keep=3)

    def content(of: Path, name: str) -> bytes:
        with Region.open(of, writable=False) as region:
            span = kept_names(region)[name]
            return bytes(region.medium.read(span.offset, span.length))

    good = path.read_bytes()
    as_numbered, of_other_run = content(path, "3"), content(other, "best")
    for name, data in (("best", as_numbered), ("best", of_other_run), ("4", as_numbered)):
        overwrite(path, name, 0, data)
        with pytest.raises(MismatchError, match=r"keeps no commit"):
            snapshot_of(path, KEY, "best" if name == "best" else "nothing")
        with Mirror.open(path, KEY, Loop().state) as mirror:
            with pytest.raises(MismatchError, match=r"keeps no commit"):
                mirror.mirror_in(back_to="best" if name == "best" else "nothing")
            assert mirror.mirror_in() == 5
        path.write_bytes(good)
    with Region.open(path, writable=False) as region:
        head = read_head(region, "best", kept_names(region)["best"])
    overwrite(path, "best", PAGE + PAGE + head.layout.manifest_room, b"\0")
    for call in (
        lambda: snapshot_of(path, KEY, "best"),
        lambda: Mirror.open(path, KEY, Loop().state).mirror_in(back_to="best"),
    ):
        with pytest.raises(SealError) as caught:
            call()
        assert str(caught.value) == (
            f"The copy of commit 4, kept as best, in {path} does not open with this key. It was "
            "altered or the disk is failing: use another one (plinius region log)."
        )


def test_every_field_of_a_kept_commits_head_is_checked(tmp_path: Path) -> None:
    """Whichever of its first bytes is changed, the commit is not used, or is the same one."""
    path, changed = tmp_path / "r", tmp_path / "changed"
    trained(path, 4, best=3)
    want, accepted = snapshot_of(path, KEY, "best").digest(), set()
    with Region.open(path, writable=False) as region:
        span = kept_names(region)["best"]
        content = bytes(region.medium.read(span.offset, span.length))
    for at in (*range(100), 1000, PAGE - 1, PAGE + 8, PAGE + 64, PAGE + 96, PAGE + 104, 2 * PAGE):
        shutil.copyfile(path, changed)
        overwrite(changed, "best", at, bytes([content[at] ^ 0xA5]))
        try:
            assert snapshot_of(changed, KEY, "best").digest() == want
            accepted.add(at)
        except PliniusError:
            pass
    assert accepted == set(range(56, 64))  # when it was copied, by the host's own clock


def test_a_commit_of_a_line_that_was_given_up_is_not_taken_for_one_of_the_run(
    tmp_path: Path,
) -> None:
    """Commit 4 was made twice: before the newest was given up, and after. The first is no more."""
    path = tmp_path / "r"
    trained(path, 4, keep=3)
    with Region.open(path, writable=False) as region:
        first = region.extent(PREFIX + "4")
    assert first is not None
    raw = bytearray(path.read_bytes())
    with Region.open(path, writable=False) as region:
        mirror = region.extent("mirror")
        assert mirror is not None
        slot_bytes = (mirror.length - PAGE) // 2
    raw[mirror.offset + PAGE + 2 * PAGE] ^= 1  # commit 4 lies in slot 0
    raw[mirror.offset + PAGE + slot_bytes - PAGE] ^= 1
    path.write_bytes(raw)
    loop = Loop()
    with Mirror.open(path, KEY, loop.state) as opened:
        with pytest.raises(SealError):
            opened.mirror_in()
        assert opened.mirror_in(accept_previous=True) == 3
        with pytest.raises(MismatchError, match="keeps no commit 4"):
            opened.mirror_in(back_to="4")
