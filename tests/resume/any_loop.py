"""A user's own loop, killed at random, in a process of its own: prints what became of it as JSON.

python any_loop.py FOLDER SEED MODE
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from plinius.mirror import Mirror
from plinius.slots import newest_snapshot
from resume.forks import Shared, forked, wait_until
from unit.mirroring import KEY, Loop

ITERATIONS = 40
KILLS = 12
MODES = {"plain": {}, "overlap": {"overlap": True}, "checked": {"checked": True}}


def run(region: Path, mode: str, told: Shared) -> None:
    """The user's program: three lines and a loop."""
    loop = Loop()
    with Mirror.open(region, KEY, loop.state, **MODES[mode]) as mirror:  # type: ignore[arg-type]
        for iteration in range(mirror.mirror_in() + 1, ITERATIONS + 1):
            loop.step()
            mirror.mirror_out(iteration)
            told[0] = (mirror.committed or 0) + 1


def ended(region: Path, mode: str, told: Shared) -> str:
    """Run it to its end; the digest it leaves."""
    _, status = os.waitpid(forked(lambda: run(region, mode, told)), 0)
    assert status == 0, "it failed"
    return newest_snapshot(region, KEY).digest()


def main() -> None:
    """One run that is not interrupted and one that is killed many times."""
    torch.set_num_threads(1)
    Loop().step()  # what torch imports at the first step, each child has then
    folder, random, mode = Path(sys.argv[1]), Random(sys.argv[2]), sys.argv[3]
    whole = ended(folder / "whole.region", "plain", Shared())
    region, told, lost = folder / "run.region", Shared(), 0
    for _ in range(KILLS):
        goal = told[0] + random.randint(1, 3)
        pid = forked(lambda: run(region, mode, told))
        if random.random() < 0.8:
            wait_until(pid, lambda: told[0] >= goal)  # noqa: B023
        time.sleep(random.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if told[0] > 1 and newest_snapshot(region, KEY).iteration < told[0] - 1:
            lost += 1
    killed = ended(region, mode, told)
    print(json.dumps({"whole": whole, "killed": killed, "lost": lost}))


if __name__ == "__main__":
    main()
