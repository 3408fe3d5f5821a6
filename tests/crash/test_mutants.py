"""Each mistake that a mutant puts into the persistence protocol is found by the proofs."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import plinius.data.dataset_extent
import plinius.pm.region
import plinius.pm.romulus
import plinius.slots.chunks
import plinius.slots.protocol
import plinius.slots.workers
import plinius.structures.words
from crash import mirrors, regions, stops
from crash import test_cost as cost
from crash import test_dataset_stops as dataset
from crash import test_mirror_stops as mirror
from crash import test_region_stops as region
from crash import test_slot_stops as slots
from crash import test_structure_stops as structures
from crash import test_worker_stops as workers
from crash.mutants import Mutant, mutants_of
from plinius.pm.medium import PAGE, Granularity

LINES, PAGES = Granularity.CACHE_LINE, Granularity.PAGE
stop = region.test_a_stop_anywhere_leaves_the_state_before_or_after
restart = region.test_a_kill_then_a_restart_then_a_power_cut_loses_nothing_that_was_seen
again = region.test_recovery_can_be_stopped_again_and_again
interrupt = region.test_an_interrupt_after_any_store_leaves_one_of_the_states
read_only = region.test_a_read_only_view_of_an_interrupted_region_is_the_recovered_one
left_open = region.test_a_transaction_that_an_interrupt_left_open_is_undone
formatting = region.test_a_stop_while_a_region_is_formatted_leaves_no_region_or_a_whole_one
commit = mirror.test_a_stop_anywhere_in_a_commit_leaves_the_commit_before_or_this_one
unsealed = mirror.test_a_stop_anywhere_in_a_commit_that_seals_no_tensor_leaves_one_of_two
making = mirror.test_a_stop_anywhere_in_the_first_commit_leaves_no_mirror_or_all_of_it
mirror_restart = mirror.test_a_kill_then_a_restart_then_a_power_cut_loses_nothing_that_was_seen
back = mirror.test_a_power_cut_after_going_back_one_commit_is_not_refused
skipping = slots.test_a_stop_anywhere_in_a_commit_that_skips_leaves_one_of_two
growing = slots.test_a_stop_anywhere_in_growing_leaves_the_old_slots_or_the_new
grown_restart = slots.test_a_kill_while_growing_then_a_restart_then_a_power_cut_loses_nothing
discarding = slots.test_a_discarded_commit_leaves_the_one_before_and_the_next_one_counts
outgrown = slots.test_slots_that_grow_for_their_manifest_hold_nothing_yet
retried = slots.test_what_a_failed_write_touched_is_sealed_again
reused = slots.test_the_space_of_outgrown_slots_is_used_again
failing = slots.test_after_a_failure_anywhere_the_next_write_commits
working = workers.test_a_stop_anywhere_in_a_commit_of_several_threads_leaves_one_of_two
exchange = structures.test_a_stop_anywhere_leaves_the_structures_before_or_after
own_words = cost.test_a_transaction_writes_back_only_its_own_words
load = dataset.test_a_stop_anywhere_in_a_load_leaves_no_dataset_or_a_whole_one

_NO_ORDER = "between two fences no store or flush is before another"
_VOLATILE = "the log is in ordinary memory, and nothing reads it before the next transaction"

EQUIVALENT = {
    "pm.romulus.Twins._commit: `for start, end in ranges:` after "
    "`for log in self._joined:`": _NO_ORDER,
    "pm.romulus.Twins._copy: `for start, end in ranges:` after "
    "`for log in self._joined:`": _NO_ORDER,
    "pm.romulus.Twins._finish: `self._log.clear()` after `for log in self._joined:`": _VOLATILE,
    "pm.romulus.Twins._finish: `self._joined.clear()` after `self._medium.fence()`": _VOLATILE,
    "pm.region.format_region: `for at in (_MAIN_AT, _MAIN_AT + twin_bytes):` after "
    "`medium.store(8, head[8:])`": _NO_ORDER,
    "slots.protocol.Slots._write_anew: `medium.write(at, header_bytes(self._run_id, self._key.id, "
    "layout))` after `for counter in (pinned.counter, number):`": _NO_ORDER,
    "slots.protocol.Slots._write_anew: `for counter in (pinned.counter, number):` after "
    "`digest, found = self._fill(there, commit, must_discard)`": _NO_ORDER,
    "slots.protocol.Slots._fill: `self._medium.write(layout.slot(plan.number) + 8, header)` after "
    "`self._medium.write(layout.manifest(plan.number), sealed)`": _NO_ORDER,
    "slots.protocol.Slots._fill: `self._medium.write(layout.manifest(plan.number), sealed)` after "
    "`taken = self._workers.seal(plan.dirty, commit.tensors, plan.fingerprinted, sealer, "
    "...`": _NO_ORDER,
    "slots.protocol.Slots._finish_interrupted: `self._put_word(layout, counter, counter)` after "
    "`self._put_word(layout, counter + 1, max(0, counter - 1))`": _NO_ORDER,
    "slots.protocol.Slots._fill: drop `self._medium.fence()`": "what is discarded need not be "
    "durable: the fence waits until the writers' memory is free",
}
"""Mutants that change nothing that is promised, and why."""

Proof = functools.partial[object]


def proofs_for(module: str, config: pytest.FixtureRequest, folder: Path) -> list[Proof]:
    """The proofs for the mutants of a module, fastest first."""

    def of(proof: Callable[..., object], *arguments: object) -> Proof:
        return functools.partial(proof, *arguments)

    if module.startswith(("pm.romulus", "structures.words")):
        return [
            of(stop, regions.scattered_words, LINES),
            of(stop, regions.two_in_a_row, LINES),
            of(stop, regions.rolled_back, LINES),
            of(stop, regions.wide_store, LINES),
            of(own_words),
            of(exchange, structures.swap_elements, LINES),
            of(left_open, lambda twins: None),
            of(left_open, plinius.pm.romulus.Twins.recover),
            of(interrupt, regions.scattered_words),
            of(interrupt, regions.exchanged_words),
            of(interrupt, regions.scattered_stores),
            of(read_only, regions.two_in_a_row),
            of(again, regions.two_in_a_row, LINES),
            of(restart, regions.two_in_a_row, LINES),
        ]
    if module.startswith("pm.region"):
        return [
            of(formatting, LINES, config),
            of(stop, regions.new_extent, LINES),
            of(stop, regions.extent_that_grows_the_region, LINES),
            of(stop, regions.dropped_extent, LINES),
            of(failing, 2, slots.LARGER, LINES),
        ]
    if module.startswith("slots"):
        return [
            of(commit, 0, LINES), of(commit, 2, LINES), of(making, LINES),
            of(commit, 2, PAGES), of(unsealed, LINES),
            of(skipping, 3, LINES), of(mirror_restart, 1, LINES), of(back, LINES),
            of(growing, 2, LINES), of(discarding), of(outgrown, LINES), of(retried, LINES),
            of(reused, LINES), of(failing, 2, 0, LINES), of(grown_restart, 1, LINES),
            of(failing, 2, slots.LARGER, LINES),
            of(working, 2, 0, 3, LINES), of(working, 2, slots.LARGER, 3, LINES),
        ]  # fmt: skip
    return [of(load, LINES, folder)]


MODULES = (
    plinius.pm.romulus,
    plinius.pm.region,
    plinius.structures.words,
    plinius.slots.protocol,
    plinius.slots.workers,
    plinius.data.dataset_extent,
)
ALL = [mutant for module in MODULES for mutant in mutants_of(module)]


def caught(mutant: Mutant, proofs: list[Proof]) -> bool:
    """Whether one of the proofs fails while the mutant runs."""
    with mutant.alive():
        for proof in proofs:
            try:
                proof()
            except (Exception, pytest.fail.Exception):
                return True
    return False


@pytest.fixture(autouse=True)
def one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images in every run; what they are compared with is made by the unchanged code."""
    monkeypatch.setattr(stops, "SEED", 1)
    monkeypatch.setattr(plinius.slots.chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(plinius.slots.chunks, "SMALL_BYTES", 64)
    monkeypatch.setattr(plinius.slots.workers, "_SHARE_BYTES", PAGE)
    monkeypatch.setattr(plinius.data.dataset_extent, "_BLOCK_BYTES", 1000)
    for change in regions.CHANGES:
        regions.states_of(change)
    for commits in (0, 1, 2):
        mirrors.mirrored(commits)


@pytest.mark.parametrize(
    "mutant", [one for one in ALL if one.name not in EQUIVALENT], ids=lambda mutant: mutant.name
)
def test_a_mutant_of_the_protocol_is_caught(
    mutant: Mutant, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Dropped, weakened or in another order: at least one proof fails."""
    assert caught(mutant, proofs_for(mutant.name, request, tmp_path))


@pytest.mark.parametrize(
    "mutant", [one for one in ALL if one.name in EQUIVALENT], ids=lambda mutant: mutant.name
)
def test_a_mutant_in_the_table_is_caught_by_no_proof(
    mutant: Mutant, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Otherwise the table would excuse a mistake; every proof runs to its end for this."""
    if not request.config.getoption("--soak", False):
        pytest.skip("takes minutes: make soak")
    assert not caught(mutant, proofs_for(mutant.name, request, tmp_path))


def test_the_proofs_pass_without_a_mutant(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Otherwise they would catch every mutant."""
    seen = set()
    for module in ("pm.romulus", "pm.region", "slots", "data.extent"):
        for proof in proofs_for(module, request, tmp_path):
            if (proof.func, proof.args) not in seen:
                seen.add((proof.func, proof.args))
                proof()


def test_each_mutant_in_the_table_exists() -> None:
    """The table is kept up to date with the code."""
    assert set(EQUIVALENT) <= {mutant.name for mutant in ALL}
