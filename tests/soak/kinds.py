"""What every kind of kill has in common: a child at work, a moment, and a look at what is left."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar, TypeVar

from plinius.errors import PliniusError
from plinius.pm.region import Region
from plinius.pm.romulus import TwinState
from resume.forks import Shared, forked

T = TypeVar("T")

SHARES = {
    "train": 0.25, "export": 0.05, "ctrl-c": 0.05,
    "create": 0.10, "grow": 0.20, "load": 0.15, "mirror": 0.20,
}  # fmt: skip
"""The part of all kills that each kind gets."""
WITH_TORCH = ("train", "export", "ctrl-c")
ALMOST_DONE = 0.9  # a child that was faster than its killer makes the next one this much earlier


@dataclass
class Fall:
    """Kills and interrupts, where they fell, the states of the twins they left, what was wrong."""

    kind: str
    place: str
    kills: int = 1
    interrupts: int = 0
    where: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def json(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)


class Kind:
    """One kind of work on files in a folder. `told` is the progress that a child reported."""

    name: ClassVar[str]

    def __init__(self, folder: Path, place: str, random: Random) -> None:
        self.folder, self.place, self.random = folder, place, random
        self.region = folder / "run.region"
        self.stderr = folder / "stderr"
        self.told = Shared()
        self.span = 0.0  # seconds that the work takes
        folder.mkdir(parents=True)
        self.prepare()
        self.renew()
        began = time.perf_counter()
        _, status = os.waitpid(forked(self.rehearse, self.stderr), 0)
        assert status == 0, f"{self.name} failed though nobody killed it: {self.said()}"
        self.span = time.perf_counter() - began
        self.renew()

    def prepare(self) -> None:
        """Make what the work needs, once."""

    def renew(self) -> None:
        """Start anew, with nothing reported."""
        raise NotImplementedError

    def work(self) -> None:
        """What the child does."""
        raise NotImplementedError

    def rehearse(self) -> None:
        """As much of the work as a killer may wait for."""
        self.work()

    def look(self, fall: Fall) -> None:
        """Hold what a kill left to the truth."""
        raise NotImplementedError

    def wait(self, pid: int) -> None:
        """Until the moment of the kill."""
        time.sleep(self.random.uniform(0, self.span))

    def round(self) -> Fall:
        """Kill until a kill met a child at work, and look at what it left."""
        fall = Fall(self.name, self.place)
        while True:
            pid = forked(self.work, self.stderr)
            self.wait(pid)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if status and not was_killed(status):
                fall.wrong.append(f"a start ended with status {status}: {self.said()}")
                self.keep()
                self.renew()
                return fall
            self.checked(fall)
            if fall.wrong or was_killed(status):
                return fall
            self.span *= ALMOST_DONE
            fall.where, fall.states = [], []
            self.renew()

    def checked(self, fall: Fall) -> None:
        """Look; a refusal is wrong too, and what was found wrong is not used any more."""
        try:
            self.look(fall)
        except (PliniusError, AssertionError) as refusal:
            fall.wrong.append(str(refusal) or "an assertion failed")
        if fall.wrong:
            self.keep()
            self.renew()

    def said(self) -> str:
        """The last line that a child wrote to stderr."""
        return (self.stderr.read_text().splitlines() or [""])[-1]

    def keep(self) -> None:
        """Put what is wrong aside, to be looked into."""
        if self.region.exists():
            self.region.rename(self.region.with_suffix(f".wrong-{time.time_ns()}"))


def was_killed(status: int) -> bool:
    """Whether SIGKILL ended a child, and nothing else."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def recovered(path: Path, read: Callable[[Region], T], fall: Fall) -> T:
    """What `read` finds in a region before and after its recovery, which must be the same.

    The twins must hold, and be equal and at rest after it.
    """
    with Region.open(path, writable=False) as region:
        region.consistency_check()
        fall.states.append(region.twins.state().name)
        before = read(region)
    with Region.open(path) as region:
        region.consistency_check()
        assert region.twins.state() is TwinState.IDLE, "recovery did not end"
        assert region.twins.equal(), "the twins differ after recovery"
        after = read(region)
    assert after == before, "recovery changed what is in the region"
    return after
