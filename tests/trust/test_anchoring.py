"""A mirror with an anchor: rolled back and forked ones are refused, honest ones go on."""

import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plinius.errors import AnchorError, StorageError
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.trust.ledger import revoke
from trust.brokers import Place, Trainer

KEY = OwnerKey(bytes(range(32)))


class LocalAnchor:
    """The anchor of a broker in this process, without a transport."""

    def __init__(self, trainer: Trainer, every: int = 1, accept_rollback: bool = False) -> None:
        self.trainer, self.every, self.accept_rollback = trainer, every, accept_rollback
        self.asked: list[str] = []

    def begin(self, run_id: str) -> tuple[int, str] | None:
        return self._ask("begin", None, None)

    def advance(self, old: tuple[int, str] | None, new: tuple[int, str]) -> None:
        self._ask("advance", old, new)

    def rewind(self, old: tuple[int, str] | None, new: tuple[int, str] | None) -> None:
        self._ask("rewind", old, new)

    def _ask(
        self, ask: str, old: tuple[int, str] | None, new: tuple[int, str] | None
    ) -> tuple[int, str] | None:
        self.asked.append(ask)
        newest, refusal = self.trainer.ask(ask, old, new)
        if refusal:
            raise AnchorError(refusal, "-")
        return newest


class Lab:
    """A region, and a broker that anchors it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.region = folder, folder / "run.region"
        self.place = Place(folder / "broker", "allow_rollback = true")
        self.broker = self.place.broker()

    def anchor(self, every: int = 1, accept_rollback: bool = False) -> LocalAnchor:
        return LocalAnchor(Trainer(self.broker).attest(), every, accept_rollback)

    def open(self, region: Path | None = None, **options: Any) -> Mirror:
        overlap = options.pop("overlap", False)
        anchor = options.pop("anchor", None) or self.anchor(**options)
        state = {"x": torch.zeros(8)}
        mirror = Mirror.open(region or self.region, KEY, state, anchor=anchor, overlap=overlap)
        mirror.test_state = state  # type: ignore[attr-defined]
        return mirror

    def train(self, first: int, last: int, stop: bool = False, **options: Any) -> Mirror:
        """Mirror some iterations; with `stop` as if the process were killed after them."""
        mirror = self.open(**options)
        assert mirror.mirror_in() == first - 1
        for iteration in range(first, last + 1):
            mirror.test_state["x"].add_(1)  # type: ignore[attr-defined]
            mirror.mirror_out(iteration)
        if stop:
            kill(mirror)
        else:
            mirror.close()
        return mirror

    def copy(self, name: str) -> Path:
        shutil.copy(self.region, self.folder / name)
        return self.folder / name


def kill(mirror: Mirror) -> None:
    """Leave a mirror as a killed process does: nothing more is anchored."""
    mirror.wait()
    mirror._anchoring._wait()  # what was on its way either arrived or did not
    mirror._anchoring._background = None
    mirror.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.broker.close()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("every", [1, 3, 10])
def test_a_mirror_goes_on_after_every_stop(lab: Lab, every: int, overlap: bool) -> None:
    """Closed or killed after any number of commits: no honest resume is refused."""
    at = 0
    for length in (1, 2, 3, 5, 7, 1, 4, 10, 11):
        lab.train(at + 1, at + length, stop=length % 2 == 0, every=every, overlap=overlap)
        at += length


def test_no_clean_resume_is_refused(lab: Lab, request: pytest.FixtureRequest) -> None:
    """60 (1,000 with --soak) resumes, of runs that were closed or killed after some commits."""
    rng, at = random.Random(11), 0
    for _ in range(1_000 if request.config.getoption("--soak") else 60):
        length = rng.randrange(4)
        lab.train(at + 1, at + length, stop=rng.random() < 0.5, every=2)
        at += length


@pytest.mark.parametrize("every", [1, 4])
def test_an_older_copy_is_refused_as_rolled_back(lab: Lab, every: int) -> None:
    """However much older; the newest copy still goes on."""
    lab.train(1, 5, every=every)
    old = lab.copy("old")
    lab.train(6, 12, every=every)
    mirror = lab.open(old, every=every)
    with pytest.raises(AnchorError, match="rolled back: it is at commit 5.*knows commit 12"):
        mirror.mirror_in()
    mirror.close()
    lab.train(13, 13, every=every)


def test_a_new_region_is_refused_where_the_anchor_knows_a_run(lab: Lab) -> None:
    """Deleting the region is a rollback to the beginning."""
    lab.train(1, 3)
    lab.region.unlink()
    with pytest.raises(AnchorError, match="it has no commit, and its anchor knows commit 3"):
        lab.open()


def test_a_fork_is_refused(lab: Lab) -> None:
    """Two mirrors from one: the one whose commits were not anchored is refused, newer or not."""
    lab.train(1, 3)
    fork = lab.copy("fork")
    lab.train(4, 6)
    anchored, lab.region = lab.region, fork
    for last in (6, 7, 9):
        forged = Mirror.open(fork, KEY, state := {"x": torch.zeros(8)})
        start = forged.mirror_in()
        for iteration in range(start + 1, last + 1):
            state["x"].add_(1)
            forged.mirror_out(iteration)
        forged.close()
        mirror = lab.open()
        with pytest.raises(AnchorError, match="is a fork: its commit"):
            mirror.mirror_in()
        mirror.close()
    lab.region = anchored
    lab.train(7, 7)


def test_the_second_trainer_of_one_run_ends_the_first(lab: Lab) -> None:
    """Two copies trained at once: the first stops at its next commit."""
    lab.train(1, 2)
    copy = lab.copy("copy")
    first = lab.open()
    first.mirror_in()
    second = lab.open(copy)
    second.mirror_in()
    second.mirror_out(3)
    first.mirror_out(3)
    with pytest.raises(AnchorError, match="another trainer continues this run"):
        first.mirror_out(4)
    first.close()
    second.mirror_out(4)
    second.close()


def test_a_mirror_beyond_the_exposure_is_refused(lab: Lab) -> None:
    """One that was trained on without the anchor, even if it names the anchored commit."""
    lab.train(1, 4, every=2)
    anchor = lab.anchor(every=2)
    mirror = lab.open(anchor=anchor)
    mirror.mirror_in()
    for iteration in (5, 6):
        mirror.mirror_out(iteration)
    kill(mirror)
    assert anchor.asked.count("advance") == 1
    strict = lab.open(every=1)
    strict.mirror_in()  # commit 6 is the anchored one
    strict.close()


def test_a_rollback_is_accepted_only_by_a_person_and_loudly(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """`accept_rollback` continues from the older copy; log and broker say so; then it counts."""
    lab.train(1, 3)
    lab.copy("old")
    lab.train(4, 6)
    newest, lab.region = lab.region, lab.folder / "old"
    with caplog.at_level(logging.WARNING, "plinius"):
        lab.train(4, 5, accept_rollback=True)
    assert "ROLLBACK ACCEPTED" in caplog.text
    assert any(one["event"] == "rewind" for one in lab.place.audit())
    lab.region = newest
    mirror = lab.open()
    with pytest.raises(AnchorError, match="is a fork"):
        mirror.mirror_in()
    mirror.close()


def test_going_back_to_a_kept_commit_is_refused_as_a_rollback_unless_it_is_accepted(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """A person and the owner's policy must accept it; the commits that follow are anchored."""
    lab.train(1, 2)
    with lab.open() as mirror:
        mirror.mirror_in()
        mirror.keep("best")
        mirror.mirror_out(3)
        with pytest.raises(AnchorError, match="of the mirror in .* would be a rollback"):
            mirror.mirror_in(back_to="best")
        assert mirror.mirror_in() == 3
    with caplog.at_level(logging.WARNING, "plinius"), lab.open(accept_rollback=True) as mirror:
        assert mirror.mirror_in(back_to="best") == 2
        mirror.mirror_out(3)
        assert mirror.commits == 4
    assert "ROLLBACK ACCEPTED" in caplog.text
    assert any(one["event"] == "rewind" for one in lab.place.audit())
    with lab.open() as mirror:
        assert mirror.mirror_in() == 3


def test_a_revoked_lease_stops_the_run_at_its_next_anchor(lab: Lab) -> None:
    """The commits before it stay, and a new lease goes on."""
    anchor = lab.anchor(every=2)
    mirror = lab.open(anchor=anchor)
    mirror.mirror_in()
    mirror.mirror_out(1)
    revoke(lab.place.folder, anchor.trainer.lease)
    mirror.mirror_out(2)
    with pytest.raises(AnchorError, match="revoked the lease"):
        mirror.mirror_out(3)
    mirror.close()
    lab.train(3, 3, every=2)


def test_the_anchor_is_asked_once_in_so_many_commits(lab: Lab) -> None:
    """With `every` 5, 20 commits are 4 requests, and none more at the end."""
    anchor = lab.anchor(every=5)
    lab.train(1, 20, anchor=anchor)
    assert anchor.asked == ["begin"] + ["advance"] * 4


def test_a_full_disk_does_not_move_the_anchor(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that failed is not anchored; the next one is."""
    anchor = lab.anchor()
    mirror = lab.open(anchor=anchor)
    mirror.mirror_in()
    mirror.mirror_out(1)

    def fail(*_: object) -> int:
        raise StorageError("full", "-")

    with monkeypatch.context() as patched:
        patched.setattr(mirror._slots, "write", fail)
        mirror.mirror_out(2)
    assert mirror.failure is not None
    mirror.mirror_out(3)
    mirror.close()
    assert anchor.asked == ["begin", "advance", "advance"]
    lab.open().close()


def test_the_digest_of_a_run_does_not_depend_on_the_anchor(lab: Lab, tmp_path: Path) -> None:
    """What the manifest says of the anchor is no part of the state."""
    lab.train(1, 3)
    anchored = lab.open()
    anchored.mirror_in()
    plain = Mirror.open(tmp_path / "plain", KEY, state := {"x": torch.zeros(8)})
    for iteration in (1, 2, 3):
        state["x"].add_(1)
        plain.mirror_out(iteration)
    assert anchored.digest(3) == plain.digest(3)
    anchored.close()
    plain.close()
