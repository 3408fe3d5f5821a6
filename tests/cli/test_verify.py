"""`plinius verify`: every record of a sealed dataset is opened, and the damaged ones are named."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result as Ended

from cli.world import ITERATIONS, RECORDS, World, call
from plinius.cli.main import main
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key
from plinius.maintenance import verification


def verified(file: Path, key: Path) -> Ended:
    return CliRunner().invoke(main, ["verify", str(file), "--key", str(key), "--json"])


def damaged(world: World, folder: Path, *indices: int) -> Path:
    """A copy of the sealed dataset with a flipped bit in some of its records."""
    header = SealedDataset.from_file(world.data, load_key(world.key)).header
    raw = bytearray(world.data.read_bytes())
    for index in indices:
        raw[header.records_offset + index * header.stride + index % header.stride] ^= 1
    path = folder / "damaged.sealed"
    path.write_bytes(raw)
    return path


def test_a_whole_dataset_is_called_whole(world: World) -> None:
    """Every record is opened, and none is damaged: exit 0."""
    said = call("verify", world.data, "--key", world.key, "--json").json
    assert said == {
        "ok": True, "kind": "sealed dataset", "id": said["id"], "count": RECORDS, "whole": RECORDS,
        "damaged": 0, "damaged_indices": [], "all_damaged_listed": True,
    }  # fmt: skip


def test_damaged_records_are_counted_and_named_by_index(world: World, tmp_path: Path) -> None:
    """Exit 1, ranges of indices on stdout, and a sentence on stderr."""
    lost = [0, 7, 8, 9, RECORDS - 1]
    path = damaged(world, tmp_path, *lost)
    ended = verified(path, world.key)
    said = json.loads(ended.stdout)
    assert (ended.exit_code, said["ok"], said["whole"]) == (1, False, RECORDS - len(lost))
    assert said["damaged_indices"] == [[0, 0], [7, 9], [RECORDS - 1, RECORDS - 1]]
    assert ended.stderr == (
        f"plinius: 5 of {RECORDS} records of damaged.sealed do not open with this key: 0, 7 to 9, "
        f"{RECORDS - 1}. They were altered or the disk is failing: fetch the file again from its "
        "owner.\n"
    )


def test_only_so_many_ranges_are_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset of which every second record is damaged takes no more memory: the rest is counted,
    and batches are no larger than they may be.
    """
    monkeypatch.setattr(verification, "MOST_RANGES", 3)
    monkeypatch.setattr(verification, "BATCH_BYTES", 1000)
    path = damaged(world, tmp_path, *range(0, RECORDS, 2))
    steps: list[tuple[int, int]] = []
    dataset = SealedDataset.from_file(path, load_key(world.key))
    found = verification.verify_records(dataset, lambda done, all_: steps.append((done, all_)))
    assert found.as_json() == {
        "count": RECORDS, "whole": RECORDS // 2, "damaged": RECORDS // 2,
        "damaged_indices": [[0, 0], [2, 2], [4, 4]], "all_damaged_listed": False,
    }  # fmt: skip
    assert len(steps) == 27
    assert steps[-1] == (RECORDS, RECORDS)


def test_a_region_is_verified_too(world: World, trained: Path) -> None:
    """The newest commit and every record, as `region verify` does."""
    said = call("verify", trained, "--key", world.key, "--json").json
    assert said == call("region", "verify", trained, "--key", world.key, "--json").json
    assert (said["mirror_opens"], said["records_open"]) == (ITERATIONS, RECORDS)


def test_what_is_no_sealed_dataset_is_refused_by_its_sentence(world: World, tmp_path: Path) -> None:
    """Truncated, foreign, a FIFO, a folder, none at all, another key, an option for regions."""
    cut = tmp_path / "cut.sealed"
    cut.write_bytes(world.data.read_bytes()[:-1])
    size = world.data.stat().st_size
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    mine, other = (load_key(path).id.hex() for path in (world.key, world.other_key))
    wrong = [
        (cut, world.key, f"cut.sealed has {size - 1} bytes, but its header declares {size}: it was "
         "truncated. Fetch it again from its owner."),
        (world.cfg, world.key, "small.cfg is not a sealed dataset. Make one with plinius seal."),
        (fifo, world.key, f"Cannot read {fifo}: Not a regular file. Check the path and its "
         "permissions."),
        (tmp_path, world.key, f"Cannot read {tmp_path}: Is a directory. Check the path and its "
         "permissions."),
        (tmp_path / "no", world.key, f"Cannot read {tmp_path}/no: No such file or directory. "
         "Check the path and its permissions."),
        (world.data, world.other_key, f"train.sealed was sealed with key {mine}, but this is key "
         f"{other}. Give the key file it was sealed with (--key)."),
    ]  # fmt: skip
    for path, key, sentence in wrong:
        ended = verified(path, key)
        assert (ended.exit_code, ended.stdout) == (1, "")
        assert ended.stderr == f"plinius: {sentence}\n"
    job = ["--job", world.cfg]
    assert "is for a region" in call("verify", world.data, "--key", world.key, *job).stderr
