"""Every loop of the tables, stopped and resumed, in every mode that promises exactness."""

from pathlib import Path
from typing import Any

import pytest

from plinius.errors import StateError
from plinius.mirror import Mirror
from resume import (
    loops_attacks,
    loops_objects,
    loops_optimizers,
    loops_values,
    loops_writes,
)
from resume.loops import KEY, LAST, LOOPS, REFUSED, require_alike, seed

assert loops_attacks
assert loops_objects, loops_optimizers
assert loops_values, loops_writes
NEEDS = {"stateful_loader": "torchdata", "metric_with_lists": "torchmetrics"}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlap": {"overlap": True},
    "two threads": {"threads": 2},
    "overlap, two threads": {"overlap": True, "threads": 2},
}


LOOPS_IN_ORDER = [*LOOPS]


def test_there_are_as_many_loops_as_promised() -> None:
    """Sixty and more."""
    assert len(LOOPS) + len(REFUSED) >= 60


@pytest.mark.parametrize("mode", ["plain", "overlap"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_was_stopped_ends_the_same(
    name: str, mode: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same digest, and the same values of the same classes, bit for bit."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if request.config.getoption("--soak"):
        stops = [(k,) for k in range(1, LAST)] + [tuple(range(1, LAST))]
        for how in MODES.values():
            folder = tmp_path / str(how)
            folder.mkdir()
            require_alike(LOOPS[name], folder, stops, **how)
    else:
        require_alike(LOOPS[name], tmp_path, [(3,), (1, 2, 5)], **MODES[mode])


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_resumed_is_refused_by_mirror_out(name: str, tmp_path: Path) -> None:
    """By mirror_out, with the path and a way out; the last commit stays."""
    build, sentence = REFUSED[name]
    seed()
    state, step = build()
    committed = 0
    with Mirror.open(tmp_path / "run.region", KEY, state) as mirror:
        with pytest.raises(StateError) as told:
            for iteration in range(1, LAST + 1):
                step(iteration)
                mirror.mirror_out(iteration)
                committed = iteration
        assert sentence in str(told.value)
        assert mirror.committed == (committed or None)


def test_a_mirror_that_misses_a_write_is_noticed(tmp_path: Path) -> None:
    """The comparison notices: with trusted versions a write through .data is lost."""
    build = LOOPS["one_item_through_data"]
    with pytest.raises(AssertionError, match="stopped after"):
        require_alike(build, tmp_path, [(5,)], trust_versions=True)


@pytest.mark.parametrize("mode", ["plain", "overlap"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_on_a_device_ends_the_same(
    name: str,
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The way of a GPU's tensors, with the host standing for the GPU."""
    if not request.config.getoption("--soak") and LOOPS_IN_ORDER.index(name) % 16:
        pytest.skip("only every sixteenth loop without --soak")
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for module in ("devices", "restore"):
        monkeypatch.setattr(f"plinius.state.{module}.is_on_host", lambda tensor: False)
    monkeypatch.setattr("plinius.state.devices.SMALL_BYTES", 40)
    monkeypatch.setattr("plinius.state.devices.BLOCK_WORDS", 256)
    require_alike(LOOPS[name], tmp_path, [(3,), (1, 2, 5)], **MODES[mode])
