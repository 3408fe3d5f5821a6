"""What the broker as an anchor costs an iteration, over a socket."""

import statistics
import time
from pathlib import Path

import pytest
import torch

from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.trust.client import Address
from plinius.trust.trainer import BrokerAnchor, Source, ask_for_keys
from trust.brokers import JOB, Place, served

ITERATION = 0.5
"""Seconds of the iteration that the cost is compared with. A shorter one is waited for here."""


def seconds_of(region: Path, anchor: BrokerAnchor | None, iterations: int) -> list[float]:
    """The time of each mirror_out of a small state."""
    found, state = [], {"x": torch.zeros(1000)}
    with Mirror.open(region, OwnerKey(bytes(32)), state, anchor=anchor, threads=1) as mirror:
        mirror.mirror_in()
        for iteration in range(1, iterations + 1):
            time.sleep(0.03)
            state["x"].add_(1)
            began = time.perf_counter()
            mirror.mirror_out(iteration)
            found.append(time.perf_counter() - began)
    return found


@pytest.mark.parametrize(("every", "share"), [(10, 0.01), (1, 0.02)])
def test_an_anchor_costs_little_beside_an_iteration(
    tmp_path: Path, every: int, share: float, request: pytest.FixtureRequest
) -> None:
    """At most 1 % of 0.5 s with an anchor every 10 commits; each commit only with --soak."""
    if every == 1 and not request.config.getoption("--soak"):
        pytest.skip("a measurement on a quiet machine (--soak)")
    count = 400 if request.config.getoption("--soak") else 30
    place = Place(tmp_path / "broker", f"anchor_every = {every}")
    plain = seconds_of(tmp_path / "plain", None, count)
    with served(place, "--rate", "1000") as (url, _):
        anchor = ask_for_keys(Address(url), JOB, Source(place.folder / "dev")).anchor
        anchored = seconds_of(tmp_path / "anchored", anchor, count)
    extra = statistics.fmean(anchored) - statistics.fmean(plain)
    print(f"anchor every {every}: {1000 * extra:.2f} ms an iteration, {extra / ITERATION:.2%}")
    assert extra < share * ITERATION
