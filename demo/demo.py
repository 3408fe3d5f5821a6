"""The demonstration: train on sealed MNIST, kill the trainer at random moments, lose nothing.

Part one runs a small job twice, once without a kill and once killed several times by SIGKILL, and
compares the digests of the two run states. Part two is the main job: mnist.cfg for 500 iterations
in a region on disk, killed several times and then tested. All files are created anew in demo/work.
Every command is printed before it runs, so that it can also be typed.
"""

import json
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("demo")  # paths are relative to ROOT, to be short where they are printed
WORK = DEMO / "work"
BIN = Path(os.path.relpath(sys.executable, ROOT)).parent
PLINIUS = str(BIN / "plinius")

KEY = WORK / "owner.key"
TRAIN, TEST = WORK / "mnist-train.sealed", WORK / "mnist-test.sealed"
METRICS, KILLS = WORK / "metrics.jsonl", WORK / "kills.json"

KILL_COUNT = 4
SMALL_ITERATIONS = 100
WANTED_ACCURACY = 0.985
PROGRESS_EVERY = 50
POLL_SECONDS = 0.001

Metrics = dict[str, Any]
console = Console(highlight=False)


@dataclass
class Kill:
    """One SIGKILL: seconds since the first start, the last iteration before it, the time lost.

    The iteration is the last one in the metrics file; the next one may have been committed too.
    The time lost is from that line to the next one, minus a normal iteration, in seconds.
    """

    at: float
    after_iteration: int
    lost: float = 0.0


@dataclass
class Watch:
    """Follows a growing metrics file; `seen` has the time when each line was first seen."""

    path: Path
    lines: list[Metrics] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    _at: int = 0

    @property
    def iteration(self) -> int:
        """The last iteration in the file; 0 before the first."""
        return int(self.lines[-1]["iteration"]) if self.lines else 0

    def new_lines(self) -> list[Metrics]:
        """The lines since the last call, without one that is not yet complete."""
        if not self.path.exists() or self.path.stat().st_size == self._at:
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        new = [json.loads(line) for line in whole.splitlines()]
        self._at += len(whole) + 1 if whole else 0
        self.lines += new
        self.seen += [time.monotonic()] * len(new)
        return new


def main() -> None:
    """Run the demonstration; exits with 1 if a claim does not hold."""
    os.chdir(ROOT)
    began = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    seal_mnist()
    show_equal_digests()
    kills, watch = train_and_kill()
    step("Test the trained network on the 10,000 sealed test images")
    result = ask("test", str(DEMO / "mnist.cfg"), "--data", TEST, "--region", WORK / "mnist.region")
    KILLS.write_text(json.dumps([asdict(kill) for kill in kills], indent=1))
    run(str(BIN / "python"), DEMO / "picture.py", METRICS, KILLS, WORK / "loss.png")
    console.print()
    console.print(summary(result, kills, watch))
    console.print(f"The loss, with the kills in it: {WORK / 'loss.png'}")
    console.print(f"The whole demonstration took {(time.monotonic() - began) / 60:.1f} minutes.")
    if result["accuracy"] < WANTED_ACCURACY:
        fail(f"The accuracy {result['accuracy']:.2%} is below {WANTED_ACCURACY:.2%}.")


def seal_mnist() -> None:
    """What the owner does: create a key and seal MNIST with it."""
    step("Rebuild MNIST, make the owner's key, seal the data with it")
    plain = WORK / "mnist"
    run(str(BIN / "python"), DEMO / "mnist.py", plain)
    run(PLINIUS, "keygen", "-o", KEY)
    for sealed, name in ((TRAIN, "train"), (TEST, "t10k")):
        images, labels = plain / f"{name}-images-idx3-ubyte", plain / f"{name}-labels-idx1-ubyte"
        run(PLINIUS, "seal", "--key", KEY, "-o", sealed, "--images", images, "--labels", labels)


def show_equal_digests() -> None:
    """Part one: a killed run ends with the same run state, bit for bit, as one that was not."""
    step(f"A short run without a kill, and the same run killed {KILL_COUNT} times")
    digests = []
    for name, kill_count in (("whole", 0), ("killed", KILL_COUNT)):
        region = WORK / f"small-{name}.region"
        watch = Watch(WORK / f"small-{name}.jsonl")
        command = train_command("small.cfg", region, watch.path)
        train(command, SMALL_ITERATIONS, kill_count, watch)
        digests.append(ask("digest", "--region", region)["digest"])
    if digests[0] != digests[1]:
        fail("The digests differ: the killed run has another state than the run without a kill.")
    console.print("[bold green]Equal digests: every bit of the two run states is the same.[/]")


def train_and_kill() -> tuple[list[Kill], Watch]:
    """Part two: the main job, on disk."""
    step(f"The main job: mnist.cfg, 500 iterations, killed {KILL_COUNT} times")
    watch = Watch(METRICS)
    command = train_command("mnist.cfg", WORK / "mnist.region", METRICS)
    return train(command, 500, KILL_COUNT, watch), watch


def train_command(cfg: str, region: Path, metrics: Path) -> list[str]:
    """The command that starts the run, and also resumes it."""
    # One thread: on two busy cores, two threads wait for each other and vary in speed.
    files = {"--data": TRAIN, "--region": region, "--key": KEY, "--metrics": metrics}
    options = [str(word) for pair in files.items() for word in pair]
    return [PLINIUS, "train", str(DEMO / cfg), *options, "--threads", "1"]


def train(command: list[str], iterations: int, kill_count: int, watch: Watch) -> list[Kill]:
    """Start the command and kill it at random moments, `kill_count` times, until it is done.

    A moment is a random iteration between 5 % and 80 % of the run, then a random delay of up to
    two iterations: it can be anywhere in an iteration, also while mirroring, but not after the
    end of the run.
    """
    generator = random.SystemRandom()
    after = sorted(int(iterations * generator.uniform(0.05, 0.8)) for _ in range(kill_count))
    began = time.monotonic()
    kills: list[Kill] = []
    for target in [*after, None]:
        show(command)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as trainer:
            try:
                follow(trainer, watch, target)
                if target is None:
                    break
                time.sleep(generator.uniform(0, 2 * float(watch.lines[-1]["seconds"])))
                kill(trainer)
            except BaseException:
                trainer.kill()
                raise
        watch.new_lines()
        kills.append(Kill(time.monotonic() - began, watch.iteration))
        where = f"{kills[-1].at:.3f} s, after iteration {watch.iteration} of {iterations}"
        console.print(f"[bold red]SIGKILL[/] at {where}")
    if trainer.returncode or watch.iteration != iterations:
        fail(f"The trainer ended with {trainer.returncode} at iteration {watch.iteration}.")
    count_losses(kills, watch)
    return kills


def follow(trainer: subprocess.Popen[bytes], watch: Watch, target: int | None) -> None:
    """Wait until this trainer has committed iteration `target`, or for its end if that is None."""
    fresh = False
    while trainer.poll() is None:
        new = watch.new_lines()
        fresh = fresh or bool(new)
        if not sys.stderr.isatty():
            print_progress(new)
        if fresh and target is not None and watch.iteration >= target:
            return
        time.sleep(POLL_SECONDS)
    print_progress(watch.new_lines())
    if target is not None:
        fail(f"The trainer ended by itself ({trainer.returncode}) before iteration {target}.")


def kill(trainer: subprocess.Popen[bytes]) -> None:
    """End the trainer by SIGKILL, which no handler can delay."""
    trainer.send_signal(signal.SIGKILL)
    if trainer.wait() != -signal.SIGKILL:
        fail(f"The trainer ended by itself ({trainer.returncode}) before the kill.")
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")  # its progress line hid the cursor


def count_losses(kills: list[Kill], watch: Watch) -> None:
    """Set the time lost of each kill."""
    normal = median(watch, "seconds")
    for one in kills:
        next_line = next(
            number
            for number, line in enumerate(watch.lines)
            if line["iteration"] > one.after_iteration
        )
        one.lost = max(0.0, watch.seen[next_line] - watch.seen[next_line - 1] - normal)


def summary(result: dict[str, Any], kills: list[Kill], watch: Watch) -> Table:
    """The short table at the end."""
    seconds = median(watch, "seconds")
    mirror, opening = median(watch, "mirror_seconds"), median(watch, "open_seconds")
    mirrored = sum(int(line["mirror_bytes"]) for line in watch.lines)
    lost = sum(one.lost for one in kills)
    sealed = TRAIN.stat().st_size + TEST.stat().st_size
    table = Table(
        "what", "measured", title="MNIST, trained on sealed data and killed several times"
    )
    table.add_row("accuracy", f"{result['accuracy']:.2%} of {result['samples']:,} test images")
    table.add_row("iterations", f"{result['iteration']}")
    table.add_row("kills (SIGKILL)", f"{len(kills)}")
    table.add_row(
        "time lost to kills*", f"{lost:.1f} s in all, {lost / len(kills):.1f} s each on average"
    )
    table.add_row("one iteration", f"{seconds:.3f} s (median)")
    table.add_row("mirroring out", f"{1000 * mirror:.2f} ms (median), {mirror / seconds:.2%} of it")
    table.add_row("opening a batch", f"{1000 * opening:.2f} ms (median), {opening / seconds:.2%}")
    table.add_row("sealed datasets", f"{sealed:,} bytes")
    table.add_row("mirrored in total", f"{mirrored:,} bytes, sealed")
    table.caption = (
        "* from the last line of metrics before a kill to the next one, minus a normal iteration"
    )
    return table


def median(watch: Watch, name: str) -> float:
    """The median of one of the metrics."""
    return statistics.median(float(line[name]) for line in watch.lines)


def print_progress(lines: list[Metrics]) -> None:
    """Print every iteration that PROGRESS_EVERY divides."""
    for line in lines:
        if line["iteration"] % PROGRESS_EVERY == 0:
            text = "iteration {iteration:>3}  average loss {average_loss:.4f}  {seconds:.3f} s"
            console.print("  " + text.format(**line))


def step(title: str) -> None:
    """Announce a step."""
    console.print(f"\n[bold]{title}[/]")


def show(command: list[str]) -> None:
    """Print a command as it would be typed."""
    console.print("$ " + shlex.join(command), style="cyan", markup=False, soft_wrap=True)


def run(*words: str | Path) -> str:
    """Show a command, run it, and return what it printed; a failure ends the demonstration."""
    command = [str(word) for word in words]
    show(command)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        fail("That command failed; its message is above.")
    return done.stdout


def ask(name: str, *words: str | Path) -> dict[str, Any]:
    """Show and run a plinius command with --json; show and return its answer."""
    answer = run(PLINIUS, name, *words, "--key", KEY, "--json")
    console.print(answer.strip(), markup=False, soft_wrap=True)
    result: dict[str, Any] = json.loads(answer)
    return result


def fail(sentence: str) -> NoReturn:
    """End with a sentence and exit code 1."""
    console.print(sentence, style="bold red", markup=False)
    sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped. The next `make demo` starts afresh.")
