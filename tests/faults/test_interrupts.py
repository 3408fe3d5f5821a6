"""Ctrl-C at every line of the mirror: no call that follows builds on what was left half done."""

import shutil
import sys
import threading
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
    for name in ("mirror.py", "background.py", "slots", "state", "pm")
)
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "two threads": {"threads": 2},
    "overlap": {"overlap": True},
    "live": {"overlap": True, "only_steps_write": True},
}


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
def interrupted(at: int, *, workers: bool = False) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the line `at` of the mirror's own code; counts the lines."""
    seen = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
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


def one_round(run: Run, mirror: Mirror, region: Path, at: int, what: str) -> bool:
    """One call that is interrupted at a line, and those after it; whether the line was reached."""
    last = mirror.committed or 0
    run.become(last + 1)
    reached = True
    try:
        with interrupted(at) as seen:
            if what == "out":
                mirror.mirror_out(last + 1)
                mirror.wait()
            else:
                mirror.mirror_in()
        reached = seen[0] >= at
    except KeyboardInterrupt:
        pass
    if what == "in" and at % 2:
        whole = run.iteration() is not None
        try:
            mirror.mirror_out(last + 2)
            mirror.wait()
            assert whole, "a state that is not all back was mirrored out"
        except StateError:  # the mirror knows that it is not all back
            mirror.mirror_in()
        run.become(last + 2)
        mirror.mirror_out(last + 2)
    elif at % 3 == 0 and what == "out":
        run.become(last + 2)
        mirror.mirror_out(last + 2)
        mirror.wait()
        assert mirror.failure is None
        assert stored(region) == last + 2
    begun = mirror.mirror_in()
    assert run.iteration() == begun == stored(region)
    assert begun >= last
    return reached


@pytest.mark.parametrize("what", ["out", "in"])
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
    step, rounds = (1, 6) if soak else (11, 1)
    monkeypatch.setattr("plinius.slots.workers._SHARE_BYTES", 4096)  # so that threads share it
    region, run = tmp_path / "run.region", Run()
    with Mirror.open(region, KEY, run.state, **MODES[mode]) as mirror:
        for iteration in (1, 2, 3):
            run.become(iteration)
            mirror.mirror_out(iteration)
        mirror.wait()
        for _ in range(rounds):
            at = 1
            while one_round(run, mirror, region, at, what):
                at += step
            assert at > 200
