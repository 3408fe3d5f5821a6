"""The soak in short, and what it would say of a state that is wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import soak.bare
from plinius.pm.region import Region
from plinius.slots import Slots
from soak.bare import KEY, Commit, Create, Grow, Load, directory_after, state_after
from soak.kinds import SHARES, Fall, Kind

SOAK = Path(__file__).with_name("soak.py")
SEED = os.environ.get("PLINIUS_TEST_SEED")
KILLS = 40


def test_some_kills_of_every_kind_leave_nothing_wrong() -> None:
    """40 kills over all that writes, as `make soak` does 1,000: none leaves a wrong state."""
    seed = ["--seed", SEED] if SEED else []
    command = [sys.executable, str(SOAK), "--kills", str(KILLS), "--json", *seed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert told["kills"] == sum(row["kills"] for row in told["kinds"].values()) >= KILLS
    for kind, share in SHARES.items():
        assert told["kinds"][kind]["kills"] >= int(share * KILLS), kind
    assert told["kinds"]["ctrl-c"]["interrupts"] > 0


def wrong_of(kind: Kind) -> str:
    """What the soak says of what lies in a kind's folder."""
    fall = Fall(kind.name, "disk")
    kind.checked(fall)
    return "; ".join(fall.wrong)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little work, and no child of the process of pytest, which has threads."""
    monkeypatch.setattr(soak.bare, "RECORDS", 401)
    monkeypatch.setattr("soak.kinds.forked", lambda work, _: os.posix_spawnp("true", ["true"], {}))


def made(kind: type[Kind], folder: Path) -> Kind:
    """A kind at its beginning."""
    return kind(folder / kind.name, "disk", Random(1))


def commit(region: Path, states: int) -> None:
    """Mirror so many states."""
    with Region.open(region) as opened:
        mirror, state = Slots.create(opened, KEY), None
        for _ in range(states):
            state = state_after(state)
            mirror.write(state)


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        (0, "0 was told, and 2 is left"),
        (1, ""),
        (2, ""),
        (3, "3 was told, and 2 is left"),
    ],
)
def test_a_commit_older_or_newer_than_reported_is_wrong(
    told: int, wrong: str, tmp_path: Path
) -> None:
    """Iteration 2 may be left by a kill after 1 or 2 were reported, and by no other."""
    kind = made(Commit, tmp_path)
    kind.told[0] = told + 1
    commit(kind.region, 3)
    assert wrong_of(kind) == wrong


def test_another_state_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the right iteration, but with other bytes than the uninterrupted run's."""
    kind = made(Commit, tmp_path)
    commit(kind.region, 1)
    monkeypatch.setattr(soak.bare, "WORDS", soak.bare.WORDS - 1)
    assert wrong_of(kind) == "a state that the uninterrupted run has not"


def steps(region: Path, count: int) -> None:
    """So many steps of the directory."""
    with Region.open(region) as opened:
        for step in range(count):
            soak.bare._step(opened, step)


def alter(region: Path) -> None:
    """One bit of the newest extent."""
    with Region.open(region) as opened:
        span = opened.heap.extents()["e5"]
        opened.medium.write(span.offset, bytes([opened.medium.read(span.offset, 1)[0] ^ 1]))
        opened.medium.fence()


def lose(region: Path) -> None:
    """The name of one extent."""
    with Region.open(region) as opened:
        opened.drop_extent("e4")


def split(region: Path) -> None:
    """One byte of MAIN, which BACK has not."""
    with region.open("r+b") as file:
        file.seek(4096 + 64)
        file.write(b"X")


@pytest.mark.parametrize(
    ("harm", "told", "wrong"),
    [
        (None, 17, ""),
        (None, 16, ""),
        (None, 15, "not that of 15 steps"),
        (None, 18, "not that of 18 steps"),
        (alter, 17, "not that of 17 steps"),
        (lose, 17, "not that of 17 steps"),
        (split, 17, "differ though no transaction was open"),
    ],
)
def test_another_directory_is_wrong(
    harm: Callable[[Path], None] | None, told: int, wrong: str, tmp_path: Path
) -> None:
    """A directory, or bytes behind it, that are not those of the steps that were reported."""
    kind = made(Grow, tmp_path)
    steps(kind.region, 17)
    assert directory_after(17) == ([2, 3, 4, 5], 5)
    if harm:
        harm(kind.region)
    kind.told[0] = told
    found = wrong_of(kind)
    assert wrong in found
    assert bool(found) is bool(wrong)


def test_a_lost_dataset_or_region_is_wrong(tmp_path: Path) -> None:
    """What was reported must be there."""
    load, create = made(Load, tmp_path), made(Create, tmp_path)
    load.told[0] = create.told[0] = 1
    assert wrong_of(load) == "a dataset that was told is not there"
    assert wrong_of(create) == "a region that was told is not there"


def test_an_altered_dataset_is_wrong(tmp_path: Path) -> None:
    """A loaded dataset must hold every byte of the sealed one."""
    load = made(Load, tmp_path)
    load.work()
    intact = tmp_path / "intact"
    shutil.copy(load.region, intact)
    assert wrong_of(load) == ""
    shutil.copy(intact, load.region)
    with load.region.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(b"X")
    assert wrong_of(load) == "the dataset is not what was sealed"
