"""What a region holds: its commits, and the tensors of one."""

import hashlib
from dataclasses import dataclass

from plinius.errors import FormatError, MismatchError, PliniusError, RegionError
from plinius.history.commit_history import returns_of
from plinius.history.kept_commits import genuine, kept_names, open_kept, read_head
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.slots.layout import EXTENT, read_counters, read_header
from plinius.snapshot import Snapshot

_MOST_METRICS = 8


@dataclass(frozen=True)
class Commit:
    """A line of the log. Without a key `iteration` and `time` (seconds since 1970) are as the head
    of a kept commit says, None for the newest, and nothing is authenticated.

    `state` is "" for a commit that can be used, as far as is known, or says why it cannot be.
    """

    name: str
    commit: int
    iteration: int | None
    time: int | None
    nbytes: int
    metrics: dict[str, Json]
    state: str = ""


def commits_in(region: Region, key: OwnerKey | None) -> tuple[list[Commit], list[Json]]:
    """The commits of a region, the newest last, and (with a key) when its run went back.

    Raises MismatchError if it holds no run, and what `Slots.open` and `Slots.newest` raise.
    """
    span = region.extent(EXTENT)
    slots = Slots.open(region, key) if key else None
    newest = slots.newest() if slots else None
    commits = 0
    if span is not None:
        run_id, _, layout = read_header(region, span)
        commits = max(read_counters(region, run_id, layout))
    if span is None or commits == 0:
        raise MismatchError(
            f"{region.name} holds no mirrored run", "Train one first: plinius train"
        )
    listed = [_kept(region, name, key, newest) for name in kept_names(region)]
    listed.sort(key=lambda one: (one.commit, one.name))
    now = Commit(
        "newest", commits, newest.iteration if newest else None, None, layout.slot_bytes,
        _metrics(newest) if newest else {},
    )  # fmt: skip
    back: list[Json] = [[*one] for one in returns_of(newest)] if newest else []
    return [*listed, now], back


def _kept(region: Region, name: str, key: OwnerKey | None, newest: Manifest | None) -> Commit:
    span = kept_names(region)[name]
    try:
        head = read_head(region, name, span)
    except (RegionError, FormatError):
        return Commit(name, 0, None, None, span.length, {}, "damaged")
    listed = Commit(name, head.commit, head.iteration, head.time, span.length, {})
    if key is None or newest is None:
        return listed
    found = genuine(region, newest).get(name)
    if found is None:
        return _with_state(listed, "not of this run as it is now")
    try:
        _, manifest = open_kept(region, key, *found)
    except PliniusError:
        return _with_state(listed, "does not open")
    return Commit(
        name, manifest.commit, manifest.iteration, head.time, span.length, _metrics(manifest)
    )


def _with_state(commit: Commit, state: str) -> Commit:
    return Commit(
        commit.name, commit.commit, commit.iteration, commit.time, commit.nbytes, {}, state
    )


def _metrics(manifest: Manifest) -> dict[str, Json]:
    """The plain numbers in the state, by name: a loss, a score, a count (at most 8)."""
    tree = manifest.values.get("")
    pairs = tree.get("dict") if isinstance(tree, dict) else None
    found: dict[str, Json] = {}
    for pair in pairs if isinstance(pairs, list) else []:
        name, value = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(name, str) and number and len(found) < _MOST_METRICS:
            found[name] = value
    return found


def tensors_of(snapshot: Snapshot) -> list[dict[str, Json]]:
    """Name, dtype, shape, bytes and SHA-256 (of the items in row-major order) of each tensor."""
    return [
        {
            "name": tensor.name,
            "dtype": tensor.dtype,
            "shape": [*tensor.shape],
            "bytes": tensor.nbytes,
            "sha256": hashlib.sha256(tensor.row_major()).hexdigest(),
        }
        for tensor in sorted(snapshot.tensors, key=lambda tensor: tensor.name)
    ]


def differences(a: Snapshot, b: Snapshot) -> dict[str, Json]:
    """What differs between two states: the names of tensors, and whether their values do.

    `identity` has the settings of which run it is that differ, as [a, b].
    """
    first, second = ({str(t["name"]): t for t in tensors_of(one)} for one in (a, b))
    both = first.keys() & second.keys()
    identity: dict[str, Json] = {
        name: [a.identity.get(name), b.identity.get(name)]
        for name in sorted(a.identity.keys() | b.identity.keys())
        if a.identity.get(name) != b.identity.get(name)
    }
    return {
        "equal": a.digest() == b.digest(),
        "iterations": [a.iteration, b.iteration],
        "digests": [a.digest(), b.digest()],
        "different": [*sorted(name for name in both if first[name] != second[name])],
        "only_in_first": [*sorted(first.keys() - second.keys())],
        "only_in_second": [*sorted(second.keys() - first.keys())],
        "values_differ": a.values != b.values,
        "identity": identity,
    }
