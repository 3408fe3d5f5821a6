"""What runs inside the DAX guest, as `guest.py TASK FOLDER`; run.py reads its lines.

TASK is `check` (what the mapping is, and the tests on it), `engine` (a state that evolves by
integer arithmetic, mirrored every iteration, without torch; `reference` is the same with all
digests) or `torch` (a whole small training run for comparison, then one that is stopped). Each
output line that starts with "plinius: " is one JSON object. An iteration is reported when it is
committed.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plinius.errors import RegionError, SealError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.pm.cacheline import pwb_names
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.snapshot import Snapshot, TensorBytes

if TYPE_CHECKING:
    from plinius.training.trainer import Run  # imports torch, which only one task needs

TESTS = Path(__file__).parents[1]
WORLD = TESTS / "dax/work/world"
ENGINE_UNTIL, TORCH_UNTIL = 220, 24
WORDS = 128 * 1024
_GROW_EVERY, _GROWN_BYTES = 16, 300_000
_TALLY_WORDS = 512
_KEY = OwnerKey(bytes(range(32)))

Words = npt.NDArray[np.uint64]


def report(**message: object) -> None:
    """Print a line for run.py."""
    print(f"plinius: {json.dumps(message)}", flush=True)


def check(folder: Path) -> int:
    """What a region on the DAX mount is; then the tests, once for each write-back instruction."""
    import pytest

    with Region.create(folder / "first.region", 0) as region:
        sync = mapped_sync(folder / "first.region")
        report(granularity=region.granularity.value, sync=sync, kinds=pwb_names())
    chosen = ["tests/dax/test_on_dax.py", "tests/unit/test_medium.py", "tests/unit/test_region.py"]
    # The first is about ordinary disks, the second uses no mapping at all. conftest.py is not used
    # because it imports torch, which takes longer here than all of the tests.
    left_out = ["ordinary_disk", "never_gives_a_byte_twice"]
    arguments = [*chosen, "-k", " and ".join(f"not {name}" for name in left_out), "--noconftest"]
    os.chdir(TESTS.parent)
    os.environ["PLINIUS_DAX"] = str(folder)
    for name in pwb_names():
        os.environ["PLINIUS_PWB"] = name
        counts = Counts()
        options = [f"--basetemp={folder / name}", "-p", "no:cacheprovider", "--color=no"]
        code = pytest.main([*arguments, *options], plugins=[counts])
        report(pwb=name, code=int(code), passed=counts.passed, skipped=counts.skipped)
    return 0


class Counts:
    """A pytest plugin that counts the tests that passed and those that were skipped."""

    passed = skipped = 0

    def pytest_runtest_logreport(self, report: object) -> None:
        """Count one phase of one test."""
        self.passed += getattr(report, "when", "") == "call" and getattr(report, "passed", False)
        self.skipped += getattr(report, "skipped", False)


def mapped_sync(path: Path) -> bool:
    """Whether the kernel lists all of this process's mappings of a file as MAP_SYNC (sf).

    They are known by device and inode: a region is mapped before it has its name.
    """
    status = path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    inside, found = False, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = words[3:5] == [device, str(status.st_ino)]
        elif inside and words[0] == "VmFlags:":
            found.append("sf" in words)
    return bool(found) and all(found)


def reference(folder: Path) -> int:
    """The engine's run, with a digest for every iteration."""
    return engine(folder, every=True)


def engine(folder: Path, *, every: bool = False) -> int:
    """Evolve the mirrored state to ENGINE_UNTIL, resuming from what is there."""
    path = folder / "engine.region"
    twins = twins_of(path)
    report(began=twins)
    with Region.open_or_create(path) as region:
        region.consistency_check()
        mirror = Slots.open(region, _KEY)
        manifest = mirror.newest() if mirror else None
        stored = mirror.snapshot(manifest) if mirror and manifest else None
        state = stored or snapshot(0, np.arange(WORDS, dtype=np.uint64))
        tally = tally_of(region, state.iteration)
        grown_are_whole(region, state.iteration)
        report(
            resumed=stored.iteration if stored else None,
            digest=state.digest(),
            where=where_it_fell(twins, mirror),
        )
        if mirror is None:
            mirror = Slots.create(region, _KEY)
        if stored is None:
            mirror.write(state)
        while state.iteration < ENGINE_UNTIL:
            state = evolved(state)
            number = state.iteration
            if number % _GROW_EVERY == 0 and region.extent(f"grown-{number}") is None:
                add_grown(region, number)
            with region.twins.transaction():
                region.twins.store(tally, number.to_bytes(8, "little") * _TALLY_WORDS)
            mirror.write(state)
            digests = every or number == ENGINE_UNTIL  # the commits take most of the time then
            report(iteration=number, digest=state.digest() if digests else None)
        region.consistency_check()
    return 0


def snapshot(iteration: int, words: Words) -> Snapshot:
    """The run state at an iteration."""
    tensor = TensorBytes("words", "int64", words.shape, memoryview(words.data).cast("B"))
    return Snapshot(iteration, (tensor,), {"sum": int(words.sum()) % 2**53}, {}, {})


def evolved(state: Snapshot) -> Snapshot:
    """The next state, from this one and nothing else."""
    words = np.frombuffer(state.tensors[0].data, np.uint64)
    number = state.iteration + 1
    return snapshot(number, np.roll(words * np.uint64(6364136223846793005) + np.uint64(number), 1))


def tally_of(region: Region, iteration: int) -> int:
    """The offset of the tally: words that a transaction sets to the number of each iteration.

    They are made if they are not there, and must all have the number of this iteration or the next.
    """
    root = region.heap.roots().get("tally")
    if root is None:
        assert iteration == 0, "the tally was lost"
        with region.twins.transaction():
            block = region.heap.allocate(8 * _TALLY_WORDS)
            region.twins.store(block, bytes(8 * _TALLY_WORDS))
            region.heap.set_root("tally", block, 8 * _TALLY_WORDS)
        return block
    found = set(np.frombuffer(region.twins.read(root.offset, root.length), np.uint64).tolist())
    assert found in ({iteration}, {iteration + 1}), f"the tally is {found}, not {iteration}"
    return root.offset


def add_grown(region: Region, number: int) -> None:
    """Add an iteration's extent, for which the region grows."""
    data = grown(number)
    region.add_extent(f"grown-{number}", len(data), lambda medium, at: medium.write(at, data))


def grown(number: int) -> bytes:
    """The bytes of the extent that an iteration adds."""
    return number.to_bytes(4, "little") * (_GROWN_BYTES // 4)


def grown_are_whole(region: Region, iteration: int) -> None:
    """Check that each extent that was added is there, with its bytes."""
    due = range(_GROW_EVERY, iteration + 1, _GROW_EVERY)
    names = {name for name in region.heap.extents() if name.startswith("grown-")}
    assert {f"grown-{number}" for number in due} <= names, "an extent was lost"
    for name in names:
        span = region.extent(name)
        assert span is not None
        held = bytes(region.medium.read(span.offset, span.length))
        assert held == grown(int(name.partition("-")[2])), f"{name} is damaged"


def where_it_fell(twins: str, mirror: Slots | None) -> str:
    """When the machine was stopped, as the state of the twins and the older slot show."""
    if twins == "NONE":
        return "before the region"
    if twins != "IDLE":
        return f"in a transaction ({twins})"
    if mirror is None or mirror.commits < 2:
        return "before the second commit"
    try:
        mirror.before_newest()
    except (SealError, RegionError):
        return "in a commit"
    return "between commits"


def torch(folder: Path) -> int:
    """Train the small network of the tests: once without a stop, then the run that is stopped."""
    from plinius.training.trainer import Run, Settings

    key = load_key(WORLD / "owner.key")
    settings = Settings(WORLD / "small.cfg", WORLD / "train.sealed", threads=1)
    whole, path = folder / "whole.region", folder / "cut.region"
    if not whole.exists():
        with Run(whole, key, settings) as run:
            report(whole=0, digest=run.mirror.digest(run.iteration))
            run.train(TORCH_UNTIL, 1, lambda _: report_iteration("whole", run))
    twins = twins_of(path)
    report(began=twins)
    with Run(path, key, settings) as run:
        report(
            resumed=None if twins == "NONE" else run.iteration,
            digest=run.mirror.digest(run.iteration),
            where=where_it_fell(twins, run.mirror._slots),
        )
        run.train(TORCH_UNTIL, 1, lambda _: report_iteration("iteration", run))
        run.region.consistency_check()
    return 0


def report_iteration(name: str, run: "Run") -> None:
    """Report what a training run has committed."""
    report(**{name: run.iteration, "digest": run.mirror.digest(run.iteration)})


def twins_of(path: Path) -> str:
    """The state word of a region before it is opened, or NONE where there is no region."""
    if not path.exists():
        return "NONE"
    with path.open("rb") as file:
        return file.read(72)[64:].rstrip(b"\0").decode()


TASKS = {"check": check, "reference": reference, "engine": engine, "torch": torch}

if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    sys.exit(TASKS[sys.argv[1]](Path(sys.argv[2])))
