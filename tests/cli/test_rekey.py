"""`plinius rekey`: another key for a dataset or a region, whole or not at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.world import ITERATIONS, RECORDS, World, call, digest_of, memory_folder, mounted
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key
from plinius.pm.region import Region
from plinius.training.trainer import Run, Settings

KILLS = Path(__file__).with_name("rekey_kills.py")


@pytest.fixture(scope="module")
def kept(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A region in the middle of a run, which keeps commit 16 and its best."""
    region = tmp_path_factory.mktemp("kept") / "run.region"
    settings = Settings(world.cfg, world.data, threads=1, keep=1, keep_every=8)
    with Run(region, load_key(world.key), settings) as run:
        run.train(11, 1, lambda _: None)
        assert run.mirror.keep("best")
        run.train(20, 1, lambda _: None)
    return region


def rekeyed(path: Path, world: World) -> dict[str, object]:
    keys = ["--key", world.key, "--new-key", world.other_key]
    said = call("rekey", path, *keys, "--json").json
    assert isinstance(said, dict)
    return said


def test_a_dataset_has_another_key_and_the_same_records_and_id(
    world: World, tmp_path: Path
) -> None:
    """The old key opens it no more; a second time nothing is done; nothing is left beside it."""
    path = tmp_path / "data.sealed"
    shutil.copy(world.data, path)
    path.chmod(0o640)
    old, new = load_key(world.key), load_key(world.other_key)
    said = rekeyed(path, world)
    assert said == {
        "rekeyed": str(path), "kind": "dataset", "key_id": new.id.hex(), "done": True
    }  # fmt: skip
    before, after = SealedDataset.from_file(world.data, old), SealedDataset.from_file(path, new)
    assert before.header.id == after.header.id
    assert before.header.salt != after.header.salt
    assert before.about == after.about
    everything = range(RECORDS)
    for one, other in zip(before.open_batch(everything), after.open_batch(everything), strict=True):
        assert one.tobytes() == other.tobytes()
    assert path.stat().st_mode & 0o777 == 0o640
    raw = path.read_bytes()
    assert rekeyed(path, world)["done"] is False
    assert path.read_bytes() == raw
    assert [*tmp_path.iterdir()] == [path]
    assert "was sealed with key" in call("verify", path, "--key", world.key).stderr


def test_a_run_goes_on_in_a_region_with_another_key(
    kept: Path, world: World, tmp_path: Path, trained: Path
) -> None:
    """The same run, iterations, numbers and kept commits; it ends with the same bits."""
    region = tmp_path / "run.region"
    shutil.copy(kept, region)
    assert rekeyed(region, world)["kind"] == "region"
    mine, other = ["--key", world.key], ["--key", world.other_key]
    before = call("region", "log", kept, *mine, "--json").json
    assert call("region", "log", region, *other, "--json").json == before
    assert call("verify", region, *other, "--json").json["records_open"] == RECORDS
    inspected = [call("inspect", one, "--json").json["mirror"] for one in (kept, region)]
    assert inspected[0]["run_id"] == inspected[1]["run_id"]
    assert inspected[1]["commits"] == 20
    shutil.copy(world.data, tmp_path / "data.sealed")
    rekeyed(tmp_path / "data.sealed", world)
    use = ["--region", region, *other, "--threads", 1]
    train = ["train", world.cfg, "--data", tmp_path / "data.sealed", *use]
    assert call(*train, "--json").json["resumed_at"] == 20
    assert digest_of(region, world.other_key) == digest_of(trained, world.key)
    assert call(*train, "--from-iteration", 16, "--json").json["iteration"] == ITERATIONS
    assert digest_of(region, world.other_key) == digest_of(trained, world.key)
    refused = call("digest", "--region", region, *mine)
    assert refused.stderr.startswith(f"plinius: The mirror in {region} was sealed with key ")


@pytest.mark.parametrize("kind", ["dataset", "region"])
def test_a_kill_anywhere_leaves_the_old_file_or_the_new_one(
    kind: str, world: World, kept: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whole, under one key; the same command then ends what was begun, and leaves nothing else."""
    source = world.data if kind == "dataset" else kept
    every = 1 if kind == "dataset" or request.config.getoption("--soak") else 5
    with memory_folder() as memory:
        command = [sys.executable, KILLS, source, world.key, world.other_key, memory or tmp_path]
        ended = subprocess.run(
            [*map(str, command), str(every)], capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 6


def test_what_cannot_be_rekeyed_is_refused_and_stays_as_it_was(
    world: World, kept: Path, tmp_path: Path
) -> None:
    """Wrong keys, damage, foreign files, a FIFO, a file in the way, a region in use."""
    path, region = tmp_path / "data.sealed", tmp_path / "run.region"
    damaged = tmp_path / "damaged.sealed"
    shutil.copy(world.data, path)
    shutil.copy(kept, region)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    damaged.write_bytes(raw)
    cut = tmp_path / "cut.sealed"
    cut.write_bytes(raw[:-1])
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(tmp_path / "nothing")
    in_the_way = tmp_path / "cut.sealed.rekeying"
    in_the_way.write_bytes(b"somebody's")
    mine, other = (load_key(key).id.hex() for key in (world.key, world.other_key))
    with Region.create(tmp_path / "list.region") as made, made.twins.transaction():
        made.heap.set_root("queue", made.heap.allocate(64), 64)
    before = {one: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()}

    def refusal(file: Path, key: Path = world.key, new: Path = world.other_key) -> str:
        said = call("rekey", file, "--key", key, "--new-key", new)
        assert said.code == 1
        return said.stderr.removeprefix("plinius: ")

    assert refusal(path, world.key, world.key) == (
        f"The new key is the old one, {mine}. Make another one with plinius keygen.\n"
    )
    third = tmp_path.parent / f"{tmp_path.name}-third.key"
    call("keygen", "-o", third)
    wrong = load_key(third).id.hex()
    assert refusal(path, third) == (
        f"data.sealed was sealed with key {mine}, but this is key {wrong}. "
        "Give the key file it was sealed with (--key).\n"
    )
    assert f"was sealed with key {mine}, but this is key {wrong}" in refusal(region, third)
    assert refusal(damaged) == (
        f"Record {RECORDS - 1} of damaged.sealed does not open with this key. It was altered, is "
        "in the wrong place, or was sealed with another key; fetch it again from its owner.\n"
    )
    assert "it was truncated" in refusal(cut)
    assert refusal(world.cfg) == (
        f"{world.cfg} is neither a sealed dataset nor a region. Name a file made by plinius seal "
        "or plinius train.\n"
    )
    for bad, why in ((fifo, "Not a regular file"), (tmp_path, "Is a directory"),
                     (link, "No such file or directory")):  # fmt: skip
        assert refusal(bad) == f"Cannot read {bad}: {why}. Check the path and its permissions.\n"
    shutil.copy(world.data, cut)
    before[cut] = cut.read_bytes()
    assert refusal(cut) == (
        f"{in_the_way} is in the way, and is not of an earlier rekey. Move it elsewhere.\n"
    )
    assert refusal(tmp_path / "list.region") == (
        f"{tmp_path}/list.region also holds queue, which rekey does not know. Seal what that is "
        "anew with the program that made it, in a new region.\n"
    )
    with Region.open(region):
        assert "is in use by another process" in refusal(region)
    with memory_folder() as folder:
        if folder:
            with mounted(folder / "disk", "-t", "tmpfs", "-o", "size=40k", "tmpfs") as there:
                if there:
                    shutil.copy(world.data, folder / "disk" / "d.sealed")
                    assert refusal(folder / "disk" / "d.sealed") == (
                        f"Cannot write {folder}/disk/d.sealed.rekeying: No space left on device. "
                        "Free some space or choose another folder.\n"
                    )
                    assert [one.name for one in (folder / "disk").iterdir()] == ["d.sealed"]
    assert {one: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()} == before
    assert other != mine
