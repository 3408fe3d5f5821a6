"""`make test-dax`: the engine on a real DAX mapping, and runs whose machine is powered off.

Boots a guest with an emulated NVDIMM (machine.py), ext4 with dax=always, and shows there that

- a region is found to be CACHE_LINE, and the kernel lists its mapping as MAP_SYNC;
- the tests of the medium and the region pass on it with each write-back instruction of the CPU;
- a mirrored state whose machine is killed (SIGKILL to QEMU) at random moments goes on after each
  new boot from the last commit that was reported or from a later one, and ends with the digest of
  the run that nobody stopped: a torch-free state often, a real training run a few times, since only
  importing torch takes most of a minute in the guest.

What this does not show: killing QEMU keeps every store that was executed, flushed or not. So it
proves DAX, MAP_SYNC and recovery after a stop, not the order of flushes: tests/crash does that.

The moments follow from a printed seed; PLINIUS_TEST_SEED=... draws them again, as far as a machine
repeats its timing. Where the guest cannot be had it says why, and exits with 0.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, as pytest has it

from dax.guest import ENGINE_UNTIL, TORCH_UNTIL
from dax.machine import (
    PMEM_BYTES,
    GuestError,
    Machine,
    SkippedError,
    initramfs,
    kernel,
    tools,
)

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
ENGINE_CUTS, TORCH_CUTS = 10, 3
TIMEOUT = 300.0
_SAID = "plinius: "


@dataclass
class Series:
    """A run that is stopped again and again: what it reported, and how it ended."""

    task: str
    until: int
    span: float  # seconds within which it is stopped after the iteration that is waited for
    digests: dict[int, str] = field(default_factory=dict)  # those of the uninterrupted run
    reported: int = -1
    cuts: list[str] = field(default_factory=list)
    fell: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    final: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether it came to its end with the digest of the uninterrupted run."""
        return not self.wrong and self.final == self.digests.get(self.until)

    def hear(self, message: dict[str, Any]) -> None:
        """Hold a message of the guest to the truth."""
        if "whole" in message:
            self.digests[message["whole"]] = message["digest"]
            return
        if "resumed" in message:
            number = message["resumed"]
            if self.cuts:
                self.cuts[-1] += f", {message['where']}; resumed at {number}"
                self.fell[message["where"].partition(" (")[0]] += 1
                print(f"  stop {len(self.cuts)}: {self.cuts[-1]}", flush=True)
            if (-1 if number is None else number) < self.reported:
                self.wrong.append(f"iteration {self.reported} was reported, but {number} was left")
            self.reported = number or 0
        elif "iteration" in message:
            number = self.reported = message["iteration"]
            self.final = message["digest"] or ""
        else:
            return
        if message["digest"] and message["digest"] != self.digests.get(number or 0):
            self.wrong.append(f"iteration {number} has another digest than uninterrupted")


def hidden_folders() -> list[str]:
    """Of the folders that the guest's task runs from, those that its own mounts would hide."""
    needed = {HERE.parents[1], Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    covering = [Path(name) for name in ("/tmp", "/run", "/dev/shm", "/mnt")]
    hidden = [one for one in needed if any(one.is_relative_to(cover) for cover in covering)]
    return sorted(str(one) for one in hidden if not {*one.parents} & {*hidden})


def boot(task: str, *, format: bool = False) -> Machine:
    """A guest that does one task on the NVDIMM as it was left, or on a new one."""
    if format:
        (WORK / "pm.img").unlink(missing_ok=True)
        with (WORK / "pm.img").open("wb") as image:
            image.truncate(PMEM_BYTES)
    options = {
        "task": task,
        "format": "yes" if format else "no",
        "python": str(Path(sys.prefix).resolve() / "bin" / "python"),
        "script": str(HERE / "guest.py"),
        "folders": ":".join(hidden_folders()),
    }
    return Machine(WORK, tools(), options)


def run_series(series: Series, goals: list[int], random: Random) -> None:
    """Boot, wait for a goal, stop; again for every goal, and then to the end.

    Goal 0 is while the region is made, filled or first mirrored.
    """
    began = time.monotonic()
    for goal in [*goals, series.until + 1]:
        with boot(series.task) as machine:
            due = None
            for line in machine.lines(TIMEOUT):
                message = _heard(line)
                if message is None:
                    continue
                series.hear(message)
                if message.get("iteration", 0 if "began" in message else -1) >= goal:
                    due = random.uniform(0, series.span)
                    break
            if due is not None:
                time.sleep(due)
                machine.kill()
                for line in machine.lines(TIMEOUT):  # what it had reported before
                    series.hear(_heard(line) or {})
                series.cuts.append(
                    f"reported {series.reported}, {machine.seconds:.0f} s after power-on"
                )
            elif goal <= series.until:
                raise GuestError("the guest ended before it was stopped")
    series.seconds = time.monotonic() - began


def _heard(line: str) -> dict[str, Any] | None:
    """The message in a line of the console. Raises GuestError where the guest says it failed."""
    text = line.rpartition(_SAID)[2] if _SAID in line else ""
    if "plinius-failed" in line or ("plinius-ended: " in line and not line.endswith(": 0")):
        raise GuestError(line)
    if not text.endswith("}"):
        return None  # no message, or an incomplete one
    message: dict[str, Any] = json.loads(text)
    return message


def check() -> list[tuple[str, str, bool]]:
    """What the mapping is, and the tests on it: rows of the summary."""
    rows, kinds = [], ["unknown"]
    began = time.monotonic()
    with boot("check", format=True) as machine:
        for line in machine.lines(TIMEOUT):
            message = _heard(line)
            if message is None:
                continue
            if "granularity" in message:
                kinds = message["kinds"]
                said = f"{message['granularity']}, MAP_SYNC {'yes' if message['sync'] else 'no'}"
                rows.append(("mapping", said, said == "CACHE_LINE, MAP_SYNC yes"))
            else:
                counts = f"{message['passed']} passed, {message['skipped']} skipped"
                rows.append((f"tests, {message['pwb']}", counts, message["code"] == 0))
            print(f"  {rows[-1][0]}: {rows[-1][1]}", flush=True)
    whole = [row[0] for row in rows] == ["mapping", *(f"tests, {name}" for name in kinds)]
    rows.append(("tests, all", f"{time.monotonic() - began:.0f} s with boot", whole))
    return rows


def cut_runs(seed: str) -> list[Series]:
    """Both series of cuts."""
    random = Random(seed)
    engine = Series("engine", ENGINE_UNTIL, 0.15)
    with (WORK / "uninterrupted.log").open("w") as log:
        folder = WORK / "uninterrupted"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command = [sys.executable, str(HERE / "guest.py"), "reference", str(folder)]
        subprocess.run(command, stdout=log, check=True)
    for line in (WORK / "uninterrupted.log").read_text().splitlines():
        message = _heard(line) or {}
        if "digest" in message:
            engine.digests[message.get("iteration", 0)] = message["digest"]
    print(f"the engine, stopped {ENGINE_CUTS + 1} times:", flush=True)
    step = ENGINE_UNTIL // (ENGINE_CUTS + 1)
    goals = [random.randint(step * cut + 1, step * (cut + 1)) for cut in range(ENGINE_CUTS)]
    run_series(engine, [0, *goals], random)
    print(f"training, stopped {TORCH_CUTS} times:", flush=True)
    training = Series("torch", TORCH_UNTIL, 0.5)
    step = TORCH_UNTIL // (TORCH_CUTS + 1)
    goals = [random.randint(step * cut + 1, step * (cut + 1)) for cut in range(TORCH_CUTS)]
    run_series(training, goals, random)
    return [engine, training]


def prepare() -> None:
    """Fetch, unpack and build what the guest starts from, and the small world it trains in."""
    from cli.world import make_world  # imports torch, which a skip does not wait for

    (WORK / "console.log").unlink(missing_ok=True)
    initramfs(kernel(WORK), tools(), WORK / "initramfs.gz")
    shutil.rmtree(WORK / "world", ignore_errors=True)
    (WORK / "world").mkdir()
    make_world(WORK / "world")


def summary(rows: list[tuple[str, str, bool]], seed: str, seconds: float) -> bool:
    """Print the table; whether all is right."""
    print()
    for name, said, right in rows:
        print(f"{name:<18} {'ok' if right else 'WRONG':<6} {said}")
    print(f"{'time':<25} {seconds:.0f} s, PLINIUS_TEST_SEED={seed}")
    return all(right for _, _, right in rows)


def rows_of(series: Series) -> tuple[str, str, bool]:
    """A series of cuts in one row."""
    fell = ", ".join(f"{count} {where}" for where, count in sorted(series.fell.items()))
    said = f"{len(series.cuts)} cuts ({fell}), digest {series.final[:16]}, {series.seconds:.0f} s"
    for wrong in series.wrong:
        print(f"{series.task}: {wrong}")
    return f"cuts, {series.task}", said, series.right


def main() -> int:
    """Prepare, check, stop the runs, and report how they ended."""
    began = time.monotonic()
    seed = os.environ.get("PLINIUS_TEST_SEED", secrets.token_hex(4))
    print(f"PLINIUS_TEST_SEED={seed}", flush=True)
    try:
        tools()
        WORK.mkdir(exist_ok=True)
        with (WORK / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            prepare()
            print(f"prepared in {time.monotonic() - began:.0f} s; the tests:", flush=True)
            rows = check()
            rows += [rows_of(series) for series in cut_runs(seed)]
    except SkippedError as reason:
        print(f"skipped: {reason}")
        return 0
    except BlockingIOError:
        print("another make test-dax runs in this clone: wait until it is done", file=sys.stderr)
        return 1
    except (GuestError, subprocess.CalledProcessError) as error:
        with contextlib.suppress(OSError):
            print("\n".join((WORK / "console.log").read_text().splitlines()[-40:]))
        print(f"FAILED: {error} (the guest's console: {WORK / 'console.log'})")
        return 1
    return 0 if summary(rows, seed, time.monotonic() - began) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
