"""The soak: SIGKILLs at random moments, over all that writes; a table of what they left.

    python tests/soak/soak.py --kills 1000      (make soak; make soak KILLS=5000)
    python tests/soak/soak.py --seconds 3600    (make soak SECONDS=3600)

After every kill the region opens, its invariants hold, its twins are equal once recovered, and
what it holds is a state of the run that nobody stopped, none older than the last one told. Exits
with 1 if anything else was found.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

TESTS = Path(__file__).resolve().parents[1]
sys.path[0] = str(TESTS)  # and not this folder, which would hide the package of its name

from soak.kinds import SHARES, Fall  # noqa: E402
from soak.worker import Work  # noqa: E402

stderr = Console(stderr=True, highlight=False)
AT_REST = ("IDLE", "")


@dataclass
class Row:
    """What became of one kind of kill."""

    kills: int = 0
    interrupts: int = 0
    disk: int = 0
    memory: int = 0
    fell: dict[str, int] = field(default_factory=dict)
    mutating: int = 0
    copying: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, fall: Fall) -> None:
        """Count one more round."""
        self.kills += fall.kills
        self.interrupts += fall.interrupts
        self.disk += fall.kills * (fall.place == "disk")
        self.memory += fall.kills * (fall.place == "memory")
        for where in fall.where:
            self.fell[where] = self.fell.get(where, 0) + 1
        self.mutating += fall.states.count("MUTATING")
        self.copying += fall.states.count("COPYING")
        self.wrong += [f"{fall.kind} ({fall.place}): {wrong}" for wrong in fall.wrong]


@contextmanager
def places() -> Iterator[dict[str, str]]:
    """A folder on disk and one in memory; what was wrong stays there, all else goes."""
    work = TESTS / "soak" / "work"
    work.mkdir(exist_ok=True)
    found = {"disk": tempfile.mkdtemp(dir=work)}
    if os.access("/dev/shm", os.W_OK):
        found["memory"] = tempfile.mkdtemp(prefix="plinius-soak-", dir="/dev/shm")
    try:
        yield found
    finally:
        for folder in found.values():
            if not any(Path(folder).rglob("*.wrong-*")):
                shutil.rmtree(folder)


def started(work: Work) -> subprocess.Popen[str]:
    """A worker."""
    paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "soak.worker", json.dumps(asdict(work))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | alone)


def falls(works: list[Work]) -> Iterator[Fall]:
    """What the workers report, as it comes. Raises ChildProcessError if one of them fails."""
    workers = [started(work) for work in works]
    try:
        with DefaultSelector() as ready:
            for worker in workers:
                ready.register(worker.stdout, EVENT_READ, worker)  # type: ignore[arg-type]
            while ready.get_map():
                for key, _ in ready.select():
                    if line := key.fileobj.readline():  # type: ignore[union-attr]
                        yield Fall(**json.loads(line))
                        continue
                    ready.unregister(key.fileobj)
                    if key.data.wait():
                        raise ChildProcessError("a worker of the soak failed: see above")
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


def soaked(kills: int, seconds: float | None, seed: str) -> dict[str, Row]:
    """Do it, showing how far it is; the rows of the table."""
    rows = {kind: Row() for kind in SHARES}
    columns = (TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not sys.stderr.isatty()
    with places() as found, Progress(*columns, console=stderr, disable=hidden) as bar:
        task = bar.add_task("kills", total=None if seconds else kills)
        works = []
        for torch in (True, False):
            where = {place: f"{folder}/{int(torch)}" for place, folder in found.items()}
            works.append(Work(torch, kills, seconds, seed, where))
        for fall in falls(works):
            rows[fall.kind].add(fall)
            bar.advance(task, fall.kills)
            for wrong in fall.wrong:
                stderr.print(f"WRONG: {fall.kind} on {fall.place}: {wrong}", markup=False)
    return rows


def table(rows: dict[str, Row], seconds: float, seed: str) -> Table:
    """The summary: MUTATING and COPYING are the kills that left the twins so, and recovered."""
    title = f"SIGKILLs in {seconds:.0f} s, seed {seed}"
    columns = ("kind", "kills", "disk", "memory", "SIGINT", "MUTATING", "COPYING", "wrong")
    shown = Table(title=title)
    for name in columns:
        shown.add_column(name, justify="left" if name == "kind" else "right")
    for kind, row in rows.items():
        shown.add_row(kind, *_numbers([row]))
    shown.add_section()
    shown.add_row("all", *_numbers(list(rows.values())))
    return shown


def _numbers(rows: list[Row]) -> list[str]:
    of = ("kills", "disk", "memory", "interrupts", "mutating", "copying")
    sums = [sum(getattr(row, name) for row in rows) for name in of]
    return [f"{number:,}" for number in [*sums, sum(len(row.wrong) for row in rows)]]


@click.command()
@click.option("--kills", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), help="Soak so long, instead of counting.")
@click.option("--seed", help="Repeat these moments, as far as a machine repeats its timing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def main(kills: int, seconds: float | None, seed: str | None, as_json: bool) -> None:
    """Kill training, loading, creation, growth, commits and export at random moments."""
    seed = seed or secrets.token_hex(4)
    stderr.print(f"seed {seed} (--seed {seed} repeats it)")
    began = time.monotonic()
    try:
        rows = soaked(kills, seconds, seed)
    except ChildProcessError as failed:
        raise click.ClickException(str(failed)) from None
    took = time.monotonic() - began
    stderr.print(table(rows, took, seed))
    for kind, row in rows.items():
        fell = ", ".join(f"{where} {count}" for where, count in sorted(row.fell.items()))
        stderr.print(f"{kind} fell: {fell}", soft_wrap=True)
    wrong = [one for row in rows.values() for one in row.wrong]
    if as_json:
        kinds = {kind: asdict(row) for kind, row in rows.items()}
        kills = sum(row.kills for row in rows.values())
        result = {"seed": seed, "seconds": round(took, 1), "kills": kills, "wrong": wrong}
        click.echo(json.dumps(result | {"kinds": kinds}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
