"""The demonstration: train on sealed MNIST, kill the trainer at random moments, lose nothing.

Part one runs a small job twice, once without a kill and once killed several times by SIGKILL, and
compares the digests of the two run states. Part two is the main job: mnist.cfg for 500 iterations
in a region on disk, killed several times and then tested. The trainer gets its keys from a broker,
for a signed job and for evidence that is simulated; part three shows three attacks being refused.
All files are created anew in demo/work. Every command is printed before it runs.
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

from owner import Owner

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("demo")  # paths are relative to ROOT, to be short where they are printed
WORK = DEMO / "work"
BIN = Path(os.path.relpath(sys.executable, ROOT)).parent
PLINIUS = str(BIN / "plinius")

HOST = WORK / "host"  # what the machine that trains has
REGION, OLD_REGION = HOST / "mnist.region", HOST / "old.region"
TRAIN, TEST = WORK / "mnist-train.sealed", WORK / "mnist-test.sealed"
METRICS, KILLS = HOST / "metrics.jsonl", WORK / "kills.json"

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
    HOST.mkdir(parents=True)
    owner = seal_and_sign()
    step("The owner's broker runs; it gives keys for SIMULATED evidence, which proves nothing")
    with owner.broker() as url:
        show_equal_digests(owner, url)
        kills, watch = train_and_kill(owner, url)
        show_refused_attacks(owner, url)
    step("Test the trained network on the 10,000 sealed test images")
    network: list[str | Path] = [DEMO / "mnist.cfg", "--data", TEST, "--region", REGION]
    result = ask("test", owner, "mnist", *network)
    KILLS.write_text(json.dumps([asdict(kill) for kill in kills], indent=1))
    run(str(BIN / "python"), DEMO / "picture.py", METRICS, KILLS, WORK / "loss.png")
    console.print()
    console.print(summary(result, kills, watch))
    console.print(f"The loss, with the kills in it: {WORK / 'loss.png'}")
    console.print(f"The whole demonstration took {(time.monotonic() - began) / 60:.1f} minutes.")
    if result["accuracy"] < WANTED_ACCURACY:
        fail(f"The accuracy {result['accuracy']:.2%} is below {WANTED_ACCURACY:.2%}.")


def seal_and_sign() -> Owner:
    """What the owner does: make keys, seal MNIST, sign what may be computed, write a policy."""
    step("Rebuild MNIST, make the owner's keys, seal the data")
    plain = WORK / "mnist"
    run(str(BIN / "python"), DEMO / "mnist.py", plain)
    owner = Owner(WORK / "owner", PLINIUS, run)
    for sealed, name in ((TRAIN, "train"), (TEST, "t10k")):
        images, labels = plain / f"{name}-images-idx3-ubyte", plain / f"{name}-labels-idx1-ubyte"
        key: list[str | Path] = ["--key", owner.key, "-o", sealed]
        run(PLINIUS, "seal", *key, "--images", images, "--labels", labels)
    step("Sign three jobs: what may be computed, and what may leave")
    for days, name in ((1, "whole"), (2, "killed")):  # a job has one run, so they differ
        allowed = ["--allow", "digest", "--days", str(days)]
        owner.sign(name, DEMO / "small.cfg", TRAIN, *allowed)
    metrics = ["--metric", "loss", "--metric", "average_loss", "--every", "10", "--digits", "4"]
    owner.sign("mnist", DEMO / "mnist.cfg", TRAIN, "--test", TEST, *metrics)
    owner.write_policy(TRAIN, TEST)
    return owner


def show_equal_digests(owner: Owner, url: str) -> None:
    """Part one: a killed run ends with the same run state, bit for bit, as one that was not."""
    step(f"A short run without a kill, and the same run killed {KILL_COUNT} times")
    digests = []
    for name, kill_count in (("whole", 0), ("killed", KILL_COUNT)):
        region = HOST / f"small-{name}.region"
        watch = Watch(HOST / f"small-{name}.jsonl")
        command = train_command("small.cfg", region, watch.path, owner, name, url)
        train(command, SMALL_ITERATIONS, kill_count, watch)
        digests.append(ask("digest", owner, name, "--region", region)["digest"])
    if digests[0] != digests[1]:
        fail("The digests differ: the killed run has another state than the run without a kill.")
    console.print("[bold green]Equal digests: every bit of the two run states is the same.[/]")


def train_and_kill(owner: Owner, url: str) -> tuple[list[Kill], Watch]:
    """Part two: the main job, on disk. The host keeps a copy of the region of the first kill."""
    step(f"The main job: mnist.cfg, 500 iterations, killed {KILL_COUNT} times")
    watch = Watch(METRICS)
    command = train_command("mnist.cfg", REGION, METRICS, owner, "mnist", url)
    return train(command, 500, KILL_COUNT, watch, keep=True), watch


def show_refused_attacks(owner: Owner, url: str) -> None:
    """Part three: what the host tries, and the sentence that each attempt meets."""
    other = HOST / "other.key"
    owner.make_development_key(other)
    for what, command, sentence in (
        (
            "another network under the owner's job",
            train_command("small.cfg", HOST / "new.region", METRICS, owner, "mnist", url),
            "The job does not allow the recipe",
        ),
        (
            "an older copy of the region, put back",
            train_command("mnist.cfg", OLD_REGION, METRICS, owner, "mnist", url),
            "was rolled back",
        ),
        (
            "evidence that is signed by another key",
            train_command("mnist.cfg", REGION, METRICS, owner, "mnist", url, other),
            "The broker refuses this trainer",
        ),
    ):
        step(f"Attack: {what}")
        show(command)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        console.print(done.stderr.strip(), markup=False, soft_wrap=True)
        if done.returncode != 1 or sentence not in done.stderr:
            fail("This attack was not refused as it should be.")
        console.print("[bold green]Refused.[/]")


def train_command(
    cfg: str,
    region: Path,
    metrics: Path,
    owner: Owner,
    job: str,
    url: str,
    development: Path | None = None,
) -> list[str]:
    """The command that starts the run, and also resumes it; its evidence is simulated."""
    # One thread: on two busy cores, two threads wait for each other and vary in speed.
    files = {"--data": TRAIN, "--region": region, "--metrics": metrics}
    options = [str(word) for pair in files.items() for word in pair]
    keys = ["--broker", url, *owner.options(job)]
    keys += ["--simulated", str(development or owner.development)]
    return [PLINIUS, "train", str(DEMO / cfg), *options, "--threads", "1", *keys]


def train(
    command: list[str], iterations: int, kill_count: int, watch: Watch, keep: bool = False
) -> list[Kill]:
    """Start the command and kill it at random moments, `kill_count` times, until it is done.

    With `keep`, the region of the first kill is copied.

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
        if keep and not kills:
            shutil.copy(REGION, OLD_REGION)
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
        if line["iteration"] % PROGRESS_EVERY == 0 and line["average_loss"] is not None:
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


def ask(name: str, owner: Owner, job: str, *words: str | Path) -> dict[str, Any]:
    """Show and run a command of the owner's under a job; show and return its answer."""
    answer = run(PLINIUS, name, *words, "--key", owner.key, *owner.options(job), "--json")
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
