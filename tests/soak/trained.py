"""Kinds of work that need torch: training, export, and Ctrl-C during a commit."""

import functools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import safetensors.torch  # before a fork, else every child would import it

import plinius.mirror
import plinius.training.evaluation
from cli.world import CFG, CLASSES, World, make_world, textures, write_idx
from plinius.cli.main import main
from plinius.cli.shared_options import STOPPED
from plinius.data.sealed_dataset import seal_dataset
from plinius.key_file import load_key
from plinius.pm.region import Region
from plinius.slots import read_snapshot
from plinius.sources.idx import idx_source
from resume.forks import Shared, forked, wait_until
from resume.killer import Job, killed_run, train, uninterrupted
from soak.kinds import Fall, Kind, recovered, was_killed

UNTIL = 24
LARGE = 30_000  # records, so that kills fall in their loading too
WIDE = CFG.replace("filters=8\n", "filters=2000\n")  # a model of a megabyte, to be exported

assert safetensors.torch
assert plinius.training.evaluation


@functools.cache
def _world(folder: Path, cfg_text: str, records: int) -> World:
    """A small world, the same one in every place, with a larger dataset if that is wanted."""
    folder.mkdir(parents=True)
    world = make_world(folder)
    world.cfg.write_text(cfg_text)
    if not records:
        return world
    x, y = textures(records, seed=6)
    write_idx(folder / "x", x)
    write_idx(folder / "y", y)
    large = folder / "large.sealed"
    seal_dataset(idx_source(folder / "x", folder / "y", CLASSES), load_key(world.key), large)
    return replace(world, data=large)


class _Trained(Kind):
    """Work on the run of a small world: what `Kind` needs, and a job for the killer."""

    cfg_text, until, records = CFG, UNTIL, 0

    def __init__(self, worlds: Path, folder: Path, place: str, random: Random) -> None:
        self.world = _world(worlds / self.name, self.cfg_text, self.records)
        self.key = load_key(self.world.key)
        files = (str(self.world.cfg), str(self.world.data), str(self.world.key), str(folder))
        self.job = Job(*files, str(random.random()), 1, self.until)
        super().__init__(folder, place, random)

    def command(self, *arguments: object) -> None:
        """A command of `plinius`, in this process."""
        try:
            main.main([str(argument) for argument in arguments], standalone_mode=False)
        except SystemExit as ended:
            if ended.code != STOPPED:  # by a signal, with everything mirrored
                raise


class Train(_Trained):
    """A run of several kills, at any moment from its creation to its end."""

    name = "train"
    records = LARGE

    def prepare(self) -> None:
        uninterrupted(self.job, self.folder / "warm.region")
        timed = uninterrupted(self.job, self.folder / "uninterrupted.region")
        self.digests, self.started, self.ended = timed
        self.runs = 0

    def renew(self) -> None:
        """Each run has its own region."""

    def rehearse(self) -> None:
        """It was, in prepare."""

    def round(self) -> Fall:
        self.runs += 1
        run = killed_run(self.job, self.runs, self.started, self.ended, self.digests)
        where = ["an iteration" if k.startswith("iteration") else k for k in run.kills]
        wrong = list(run.wrong)
        if not wrong and (run.iteration, run.digest) != (UNTIL, self.digests[-1]):
            wrong.append(f"it ended at iteration {run.iteration} with another digest")
        return Fall(self.name, self.place, len(run.kills), 0, where, run.states, wrong)


class Export(_Trained):
    """The parameters are written: no file, or the whole one."""

    name = "export"
    cfg_text, until = WIDE, 1

    def prepare(self) -> None:
        self.mirrored = self.folder / "mirrored.region"
        os.waitpid(forked(lambda: train(self.job, self.mirrored, lambda _: None)), 0)
        self.whole: dict[str, bytes] = {}
        for suffix in (".weights", ".safetensors"):
            out = self.folder / f"whole{suffix}"
            _, status = os.waitpid(forked(functools.partial(self._export, out), self.stderr), 0)
            assert status == 0, "the uninterrupted export failed"
            self.whole[suffix] = out.read_bytes()

    def renew(self) -> None:
        """No file; the part that a killed export left stays."""
        self.out = self.folder / f"net{self.random.choice(list(self.whole))}"
        self.out.unlink(missing_ok=True)
        self.told[0] = 0

    def work(self) -> None:
        self._export(self.out)
        self.told[0] = 1

    def wait(self, pid: int) -> None:
        """At any moment, or while the file is being written."""
        if self.random.random() < 0.3:
            super().wait(pid)
            return
        part = self.out.with_name(self.out.name + ".part")
        part.unlink(missing_ok=True)
        wait_until(pid, part.exists)
        time.sleep(self.random.uniform(0, self.span / 10))

    def look(self, fall: Fall) -> None:
        recovered(self.mirrored, lambda region: region.heap.extents(), fall)
        if not self.out.exists():
            assert not self.told[0], "a file that was told is not there"
            part = self.out.with_name(self.out.name + ".part").exists()
            fall.where.append("writing" if part else "nothing yet")
            return
        assert self.out.read_bytes() == self.whole[self.out.suffix], "the file is not whole"
        fall.where.append("written")
        self.renew()

    def _export(self, out: Path) -> None:
        world = self.world
        where = ["--region", self.mirrored, "--key", world.key, "-o", out, "--json"]
        self.command("export", world.cfg, *where)


class CtrlC(_Trained):
    """SIGINT during a commit of `plinius train`, and often SIGKILL while it stops."""

    name = "ctrl-c"
    MOST = 6  # interrupts of one run

    def prepare(self) -> None:
        self.inside = Shared()  # whether a commit is going on: odd numbers
        self.digests, _, _ = uninterrupted(self.job, self.folder / "uninterrupted.region")

    def renew(self) -> None:
        self.region.unlink(missing_ok=True)
        self.told[0] = 0

    def rehearse(self) -> None:
        """It was, in prepare."""

    def work(self) -> None:
        """Train, telling where commits begin and end."""
        mirror_out = plinius.mirror.Mirror.mirror_out

        def watched(mirror: plinius.mirror.Mirror, iteration: int) -> int:
            self.inside[0] += 1
            written = mirror_out(mirror, iteration)
            self.told[0] = iteration + 1
            self.inside[0] += 1
            return written

        plinius.mirror.Mirror.mirror_out = watched  # type: ignore[method-assign, assignment]
        self.command(*self.world.train(self.region, "--json"))

    def round(self) -> Fall:
        """One run to its end, interrupted a few times; every other interrupt ends in a kill."""
        self.renew()
        fall = Fall(self.name, self.place, kills=0)
        for number in range(self.random.randint(2, self.MOST) + 1):
            last = number and (self.told[0] > UNTIL or number == self.MOST)
            status = self._start(fall, kill=number % 2 == 0, alone=bool(last))
            if was_killed(status):
                fall.kills += 1
            elif status:
                fall.wrong.append(f"a start ended with status {status}: {self.said()}")
            if fall.wrong:
                self.keep()
                return fall
            self.checked(fall)
        self._start(fall, kill=False, alone=True)
        self.checked(fall)
        if self.told[0] != UNTIL + 1:
            fall.wrong.append("the run did not go on to its end")
        return fall

    def look(self, fall: Fall) -> None:
        told = self.told[0] - 1
        found = recovered(self.region, self._mirrored, fall)
        if found is None:
            assert told < 0, f"iteration {told} was told, and there is none"
            return
        iteration, digest = found
        assert told <= iteration <= told + 1, f"{told} was told, and {iteration} is left"
        assert digest == self.digests[iteration], "a state that the uninterrupted run has not"
        self.told[0] = iteration + 1  # now that it was seen, it may not be lost either

    def _start(self, fall: Fall, *, kill: bool, alone: bool) -> int:
        """A start of the command; its exit status."""
        self.inside[0] = 0
        pid = forked(self.work, self.stderr)
        if not alone:
            commit = 2 * self.random.randint(0, 4) + 1
            wait_until(pid, lambda: self.inside[0] >= commit)
            time.sleep(self.random.uniform(0, 0.0005))
            fall.where.append("in a commit" if self.inside[0] % 2 else "after it")
            os.kill(pid, signal.SIGINT)
            fall.interrupts += 1
            if kill:
                time.sleep(self.random.uniform(0, 0.003))
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if status == 0 and "mirrored" not in self.said():
            fall.wrong.append(f"it did not say that it is mirrored: {self.said()}")
        return status

    def _mirrored(self, region: Region) -> tuple[int, str] | None:
        snapshot = read_snapshot(region, self.key)
        return (snapshot.iteration, snapshot.digest()) if snapshot else None


def kinds_of(worlds: Path, folder: Path, place: str, random: Random) -> list[Kind]:
    """These kinds in a place."""
    return [kind(worlds, folder / kind.name, place, random) for kind in (Train, Export, CtrlC)]
