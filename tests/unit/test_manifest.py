"""Manifests that the owner's key opens, but that are not of the format, are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import plinius.slots.protocol
from plinius.errors import FormatError, MismatchError, RegionFullError
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import newest_snapshot
from plinius.slots.manifest import encode_manifest
from unit.mirroring import KEY

KEYS = ["previous", "iteration", "identity", "environment", "tensors", "sealed_by", "salts"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.region"


def committed(path: Path, change: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit a state whose manifest was changed before it was sealed."""

    def changed(*arguments: Any) -> bytes:
        stored = json.loads(encode_manifest(*arguments))
        change(stored)
        return json.dumps(stored).encode()

    with monkeypatch.context() as patched:
        patched.setattr(plinius.slots.protocol, "encode_manifest", changed)
        with Mirror.open(path, KEY, {"w": torch.ones(1000)}) as mirror:
            mirror.mirror_out(1)


@pytest.mark.parametrize("key", [*KEYS, "values"])
def test_a_manifest_without_one_of_its_keys_is_refused(
    key: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with a KeyError."""
    committed(path, lambda stored: stored.pop(key), monkeypatch)
    with pytest.raises(FormatError, match="Commit 1 .* this program cannot read it"):
        newest_snapshot(path, KEY)


def set_to(key: str, value: Any) -> Callable[[Any], None]:
    return lambda stored: stored.update({key: value})


CHANGES = [
    set_to("iteration", -1), set_to("iteration", 1.5), set_to("sealed_by", [[1, 7]]),
    set_to("sealed_by", [[9, 2]]), set_to("sealed_by", [[1, -1]]), set_to("sealed_by", 3),
    set_to("salts", {"one": "00"}), set_to("tensors", [["w", "float99", [1000], None]]),
    set_to("tensors", [["w", "float32", [-1000], None]]), set_to("tensors", [["w"]]),
    set_to("tensors", [["w", "float32", [1000], [3]]]), set_to("values", None),
    set_to("tensors", [["w", "float32", [2**40], None]]),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_of_impossible_values_is_refused(
    change: Callable[[Any], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before memory is taken for what it says."""
    committed(path, change, monkeypatch)
    with pytest.raises(FormatError, match="Commit 1 .* this program cannot read it"):
        newest_snapshot(path, KEY)


@pytest.mark.parametrize(
    "tree",
    [{"tensor": "nowhere"}, {"same": "nowhere"}, {"default": ["set_trace", []]}, {"bytes": "zz"},
     {"datetime": ["long ago", None, 0]}, {"tuple": 5}, {"unknown": 5}],
    ids=str,
)  # fmt: skip
def test_a_tree_that_cannot_be_decoded_is_refused(
    tree: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MismatchError, and zeros where the state was read into."""

    def change(stored: Any) -> None:
        stored["values"][""] = {"dict": [["w", tree]]}

    committed(path, change, monkeypatch)
    with Mirror.open(path, KEY, {"w": torch.ones(1000)}) as mirror:
        with pytest.raises(MismatchError, match="The state in the region"):
            mirror.mirror_in()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_first_commit_that_finds_no_room_is_raised(
    overlap: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later one would only be kept in `failure`, and nothing is mirrored yet."""

    def full(*arguments: Any) -> None:
        raise RegionFullError("The disk has no room", "Free some space")

    state = {"w": torch.ones(1000)}
    with Mirror.open(path, KEY, state, overlap=overlap) as mirror:
        with monkeypatch.context() as patched:
            patched.setattr(Region, "add_extent", full)
            with pytest.raises(RegionFullError):
                mirror.mirror_out(1)
                mirror.wait()
        mirror.mirror_out(2)
    assert newest_snapshot(path, KEY).iteration == 2
