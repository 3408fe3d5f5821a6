"""Ctrl-C at every line of the mirror: no call that follows builds on what was left half done."""

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import plinius
from plinius.errors import StateError
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.slots import newest_snapshot

KEY = OwnerKey(bytes(range(32)))
SOURCES = tuple(
    str(Path(plinius.__file__).parent / name)
    for name in ("mirror", "slots", "state", "pm", "threads.py", "sealing.py")
)
assert all(Path(source).exists() for source in SOURCES), "a name that is gone hides its lines"
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "two threads": {"threads": 2},
    "overlap": {"overlap": True},
    "live": {"overlap": True, "only_steps_write": True},
}
SEED = os.environ.get("PLINIUS_TEST_SEED", "1")
MEMORY = Path("/dev/shm")
SOAKED = 5_000
"""Interrupts of each soaked test, beside one at each line: more than 100,000 in all of them."""


class Run:
    """A state of which every part says which iteration it is of."""

    def __init__(self) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(20_000))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.0, momentum=0.5)
        self.state: dict[str, Any] = {
            "parameter": self.parameter, "optimizer": self.optimizer,
            "large": torch.zeros(30_000), "small": torch.zeros(3), "array": np.zeros(5),
            "frozen": torch.ones(40_000), "number": 0, "list": [0],
        }  # fmt: skip

    def become(self, iteration: int) -> None:
        """Be the state of an iteration."""
        with torch.no_grad():
            for tensor in (self.parameter, self.state["large"], self.state["small"]):
                tensor.fill_(iteration)
        self.state["array"][:] = iteration
        self.state["number"], self.state["list"] = iteration, [iteration] * (iteration % 3)

    def iteration(self) -> int | None:
        """The iteration that all of the state is of, or None for a mix."""
        number = self.state["number"]
        whole = (
            all(
                bool((tensor == number).all())
                for tensor in (self.parameter, self.state["large"], self.state["small"])
            )
            and bool((self.state["array"] == number).all())
            and self.state["list"] == [number] * (number % 3)
            and bool((self.state["frozen"] == 1).all())
        )
        return number if whole else None


@contextmanager
def interrupted(at: int, event: str = "line", *, workers: bool = False) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at a line, or an opcode, of the mirror's own code; counts them."""
    seen = [0]

    def trace(frame: FrameType, what: str, argument: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        frame.f_trace_opcodes = event == "opcode"
        if what == event:
            seen[0] += 1
            if seen[0] == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    if workers:
        threading.settrace(trace)
    else:
        sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)
        threading.settrace(None)


@contextmanager
def signalled(after: float) -> Iterator[None]:
    """Raise KeyboardInterrupt as a signal does, so many seconds from now, wherever that is."""
    armed = [True]

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if armed[0]:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        armed[0] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stored(region: Path) -> int | None:
    """The iteration that another process would find now, or None for a mix."""
    copy = region.with_suffix(".copy")
    shutil.copy(region, copy)
    snapshot = newest_snapshot(copy, KEY)
    found = set()
    for tensor in snapshot.tensors:
        if tensor.name in ("parameter", "large", "small"):
            found |= set(np.frombuffer(tensor.data, np.float32).tolist())
        if tensor.name == "array":
            found |= set(np.frombuffer(tensor.data, np.float64).tolist())
    return snapshot.iteration if found == {float(snapshot.iteration)} else None


def call(mirror: Mirror, what: str, iteration: int) -> None:
    """The call that is interrupted."""
    if what == "in":
        mirror.mirror_in()
    else:
        mirror.mirror_out(iteration)
        mirror.wait()


def after_it(run: Run, mirror: Mirror, region: Path, how: int, what: str) -> None:
    """Whatever a program does next, what is committed and restored is of one iteration."""
    last = mirror.committed or 0
    if what == "in" and how % 2:
        whole = run.iteration() is not None
        try:
            mirror.mirror_out(last + 2)
            mirror.wait()
            assert whole, "a state that is not all back was mirrored out"
        except StateError:  # the mirror knows that it is not all back
            mirror.mirror_in()
        run.become(last + 2)
        mirror.mirror_out(last + 2)
    elif how % 3 == 0 and what != "in":
        run.become(last + 2)
        mirror.mirror_out(last + 2)
        mirror.wait()
        assert mirror.failure is None
        assert stored(region) == last + 2
    begun = mirror.mirror_in()
    assert run.iteration() == begun == stored(region)
    assert begun >= last


def one_round(run: Run, mirror: Mirror, region: Path, at: int, what: str) -> bool:
    """One call that is interrupted at a line, and those after it; whether the line was reached."""
    last = mirror.committed or 0
    run.become(last + 1)
    reached = True
    try:
        with interrupted(at) as seen:
            call(mirror, what, last + 1)
        reached = seen[0] >= at
    except KeyboardInterrupt:
        pass
    after_it(run, mirror, region, at, what)
    return reached


def soaked(run: Run, mirror: Mirror, region: Path, what: str, wanted: int) -> int:
    """Interrupts at random lines, opcodes and moments, at times several in turn, until so many."""
    rng, injected = random.Random(f"{SEED} {what}"), 0
    most, began = {"line": 1, "opcode": 1}, time.perf_counter()
    for event in ("line", "opcode", "moment"):
        run.become((mirror.committed or 0) + 1)
        began = time.perf_counter()
        with interrupted(-1, event) as seen:
            call(mirror, "out", run.state["number"])
            mirror.mirror_in()
        most[event] = seen[0]
    seconds = time.perf_counter() - began
    while injected < wanted:
        last = mirror.committed or 0
        for _ in range(rng.choice((1, 1, 2, 3))):
            how: Any = signalled(rng.random() * seconds)
            event = rng.choice(("line", "opcode", "moment"))
            if event != "moment":
                how = interrupted(rng.randrange(1, most[event]), event)
            if mirror._ready:
                run.become(last + 1)
            try:
                with how:
                    call(mirror, what if mirror._ready else "in", last + 1)
            except KeyboardInterrupt:
                injected += 1
        after_it(run, mirror, region, rng.randrange(6), what)
    return injected


@pytest.mark.parametrize("what", ["out", "in", "grow"])
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_at_any_line_leaves_one_whole_state(
    mode: str,
    what: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is called next, what is committed and what is restored is of one iteration."""
    soak = request.config.getoption("--soak")
    monkeypatch.setattr("plinius.slots.workers._SHARE_BYTES", 4096)  # so that threads share it
    if what == "grow":  # every commit makes larger slots, in a transaction of the heap
        monkeypatch.setattr("plinius.slots.protocol.Slots._fits", lambda *_: False)
    folder = MEMORY if soak and os.access(MEMORY, os.W_OK) else tmp_path
    region, run = folder / f"plinius-{os.getpid()}.region", Run()
    with Mirror.open(region, KEY, run.state, **MODES[mode]) as mirror:
        for iteration in (1, 2, 3):
            run.become(iteration)
            mirror.mirror_out(iteration)
        mirror.wait()
        at = 1
        while one_round(run, mirror, region, at, what):
            at += 1 if soak else (61 if what == "in" else 19)
        assert at > 200
        wanted = SOAKED if soak else 20
        assert soaked(run, mirror, region, what, wanted) >= wanted
    region.with_suffix(".copy").unlink()
    region.unlink()


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_close_is_called_again(mode: str, tmp_path: Path) -> None:
    """Meanwhile every other call works or is refused; none waits for a thread that has ended."""
    at, reached = 1, True
    while reached:
        run = Run()
        mirror = Mirror.open(tmp_path / f"{at}.region", KEY, run.state, **MODES[mode])
        run.become(1)
        mirror.mirror_out(1)
        try:
            with interrupted(at) as seen:
                mirror.close()
            reached = seen[0] >= at
        except KeyboardInterrupt:
            run.become(2)
            with contextlib.suppress(StateError):
                mirror.mirror_out(2)
                mirror.wait()
        mirror.close()
        with pytest.raises(StateError, match="This mirror is closed"):
            mirror.mirror_out(3)
        assert stored(tmp_path / f"{at}.region") == mirror.committed
        at += 3
    assert at > 10
