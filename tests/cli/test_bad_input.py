"""Bad input: the exact sentence and a next step on stderr, exit 1, and nothing lost or left."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli import bad_data, bad_runs
from cli.place import CASES, GIVE_ITS_RUN, Case, Place, does_not_open, flip_newest, newest_slot
from cli.world import (
    ITERATIONS,
    Result,
    World,
    call,
    digest_of,
    memory_folder,
    mounted,
    run,
    tree,
)
from plinius.pm.region import Region

assert bad_runs  # both fill the table


@pytest.fixture
def place(world: World, trained: Path, tmp_path: Path) -> Place:
    """A fresh place with a copy of the trained region."""
    shutil.copy(trained, tmp_path / "run.region")
    return Place(world, tmp_path)


@pytest.mark.parametrize("bad", CASES, ids=lambda made: made.__name__)
def test_bad_input_is_refused_with_one_sentence_and_changes_nothing(
    place: Place, bad: Case
) -> None:
    """The sentence of each entry of the table, exit 1, and every file as it was."""
    arguments, sentence = bad(place)
    before = tree(place.folder, place.world.folder)
    result = call(*arguments, "--json")
    assert (result.code, result.stdout) == (1, "")
    *talk, last = result.stderr.splitlines()
    assert last == f"plinius: {sentence}"
    assert all(line.startswith(("No job: ", "Resumed at ", "The region is ")) for line in talk)
    assert tree(place.folder, place.world.folder) == before


def test_a_real_process_refuses_with_exit_1(place: Place) -> None:
    """Out of the test's process too: the sentence on stderr, nothing on stdout, exit 1."""
    arguments, sentence = bad_data.wrong_key_for_the_digest(place)
    assert run(*arguments, "--json") == Result(1, "", f"plinius: {sentence}\n")


@pytest.mark.parametrize("command", ["train", "compact"])
def test_a_region_in_use_is_refused(place: Place, command: str) -> None:
    """While a process holds the region no other can write to it; afterwards all commands work."""
    arguments = {"train": place.train(), "compact": ["region", "compact", place.region]}[command]
    holds = (
        "import sys; from plinius.pm.region import Region; region = Region.open(sys.argv[1]); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", holds, place.region],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = tree(place.folder)
        result = call(*arguments)
        assert tree(place.folder) == before
        holder.send_signal(signal.SIGKILL)
    assert result == Result(
        1,
        "",
        f"plinius: {place.region} is in use by another process. Wait until it is done, or stop "
        "it; then run the same command again.\n",
    )
    assert call(*arguments).code == 0


def test_a_new_region_in_the_making_is_refused(place: Place) -> None:
    """Two trainers that start at once do not make one region together."""
    new = place.folder / "new.region"
    held = Region.create(place.folder / "other.region", 0)
    (place.folder / "new.region.creating").hardlink_to(place.folder / "other.region")
    result = call(*place.train(region=new))
    held.close()
    assert result.code == 1
    assert result.stderr.startswith(f"plinius: {new} is in use by another process. ")
    assert not new.exists()


def test_a_network_without_a_cost_makes_no_region(place: Place) -> None:
    """It is refused before anything is made, not in its first iteration."""
    cfg, region = place.cfg(("[softmax]\ngroups=1\n", "")), place.folder / "new.region"
    assert call(*place.train(cfg=cfg, region=region)) == Result(
        1,
        "",
        f"plinius: {cfg} has no layer with a cost. End the network with [softmax] or [cost].\n",
    )
    assert not region.exists()


def test_a_read_only_place_is_refused(place: Place, tmp_path: Path) -> None:
    """On a read-only mount a region is neither made nor trained in, but can be read."""
    there = tmp_path / "read-only"
    there.mkdir()
    region = there / "run.region"
    shutil.copy(place.region, region)
    with mounted(there, "--bind", str(there)) as bound:
        if not bound:
            pytest.skip("this process may not mount")
        subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
        before = tree(there)
        for arguments, path in (
            (place.train(region=region), region),
            (place.train(region=there / "new.region"), there / "new.region"),
        ):
            assert call(*arguments) == Result(
                1,
                "",
                f"plinius: Cannot use {path} as a region: Read-only file system. "
                "Name a file in a folder that you can write to (--region).\n",
            )
        keygen = call("keygen", "-o", there / "owner.key")
        assert keygen.stderr == (
            f"plinius: Cannot write {there}/owner.key: Read-only file system. "
            "Free some space or choose another folder.\n"
        )
        pair = ["--images", place.world.images, "--labels", place.world.labels]
        sealing = call("seal", "--key", place.world.key, "-o", there / "out.sealed", *pair)
        assert sealing.stderr == (
            f"plinius: Cannot write {there}/out.sealed: Read-only file system. "
            "Free some space or choose another folder.\n"
        )
        for name in ("net.weights", "net.safetensors"):
            exported = call(*place.read("export", place.world.cfg, "-o", there / name))
            assert exported.code == 1
            assert "Read-only file system" in exported.stderr
        assert call(*place.read("digest", region=region)).code == 0
        assert tree(there) == before


def test_a_full_disk_loses_nothing(place: Place, tmp_path: Path) -> None:
    """A disk too small for the data says so; with room the same command trains to the end."""
    disk = tmp_path / "disk"
    region = disk / "run.region"
    with mounted(disk, "-t", "tmpfs", "-o", "size=192k", "tmpfs") as there:
        if not there:
            pytest.skip("this process may not mount a file system")
        result = call(*place.train(region=region))
        assert (result.code, result.stdout) == (1, "")
        assert "plinius: The disk has no room for a region of " in result.stderr
        assert result.stderr.endswith(
            " bytes. Free some space, or put the region elsewhere (--region).\n"
        )
        assert call("region", "verify", region).code == 0
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        result = call(*place.train(region=region))
        assert result.code == 0, result.stderr
        assert digest_of(region, place.world.key) == digest_of(place.region, place.world.key)


def test_a_full_disk_leaves_no_half_made_file(place: Place, tmp_path: Path) -> None:
    """Where there is room for nothing, neither a region nor a sealed dataset is left in part."""
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=16k", "tmpfs") as there:
        if not there:
            pytest.skip("this process may not mount a file system")
        made = call(*place.train(region=disk / "run.region"))
        assert made.stderr == (
            "plinius: The disk has no room for a region of 135,168 bytes. "
            "Free some space, or put the region elsewhere (--region).\n"
        )
        pair = ["--images", place.world.images, "--labels", place.world.labels]
        sealing = call("seal", "--key", place.world.key, "-o", disk / "out.sealed", *pair)
        assert sealing.stderr == (
            f"plinius: Cannot write {disk}/out.sealed: No space left on device. "
            "Free some space or choose another folder.\n"
        )
        assert (made.code, sealing.code) == (1, 1)
        assert tree(disk) == {}


def test_metrics_on_a_full_disk_keep_the_run(place: Place, tmp_path: Path) -> None:
    """Metrics that find no room do not stop the run, and change nothing in it."""
    region, disk = tmp_path / "new.region", tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=4k", "tmpfs") as there:
        if not there:
            pytest.skip("this process may not mount a file system")
        metrics = disk / "m.jsonl"
        metrics.write_bytes(b"\n" * 4096)
        assert call(*place.train("--metrics", metrics, region=region)).code == 0
    assert digest_of(region, place.world.key) == digest_of(place.region, place.world.key)


def test_the_commit_before_is_taken_only_when_asked(place: Place) -> None:
    """--accept-previous resumes from the commit before and ends where the run had ended."""
    wanted = digest_of(place.region, place.world.key)
    flip_newest(place.region)
    result = call(*place.train("--accept-previous", "--json"))
    assert result.json["resumed_at"] == ITERATIONS - 1
    assert f"Resumed at iteration {ITERATIONS - 1}" in result.stderr
    assert digest_of(place.region, place.world.key) == wanted


def test_a_whole_commit_is_never_passed_over(place: Place) -> None:
    """--accept-previous changes nothing where the newest commit opens."""
    before = tree(place.folder)
    assert call(*place.train("--accept-previous", "--json")).json["resumed_at"] == ITERATIONS
    assert tree(place.folder) == before


def test_two_broken_commits_are_not_accepted(place: Place) -> None:
    """Where the commit before does not open either, --accept-previous refuses it by name."""
    flip_newest(place.region)
    flip_newest(place.region, older=1)
    before = tree(place.folder)
    result = call(*place.train("--accept-previous"))
    assert result.code == 1
    assert result.stderr.startswith(
        f"plinius: Commit {ITERATIONS - 1} in the mirror of {place.region} "
    )
    assert tree(place.folder) == before


def test_a_mirror_of_another_region_is_refused(place: Place, world: World) -> None:
    """A slot moved in from another run under the same key is not taken for this run's."""
    other = place.folder / "other.region"
    assert call(*world.train(other)).code == 0
    raw, foreign = bytearray(place.region.read_bytes()), other.read_bytes()
    at, slot = newest_slot(place.region)
    raw[at + 64 : at + slot] = foreign[at + 64 : at + slot]  # all but the commit word
    place.region.write_bytes(raw)
    result = call(*place.train())
    assert result == Result(1, "", f"plinius: {does_not_open(place.region)}\n")


def test_a_region_of_another_run_is_refused(place: Place, world: World) -> None:
    """The region of a run that began otherwise is not trained in, whatever differs."""
    other = place.folder / "other.region"
    assert call(*world.train(other, "--seed", 3, "--iterations", 2)).code == 0
    before = tree(place.folder)
    result = call(*place.train(region=other))
    assert result == Result(
        1,
        "",
        f"plinius: This is not the run in the region: seed is 0 but was 3. {GIVE_ITS_RUN}\n",
    )
    assert tree(place.folder) == before


def test_memory_is_refused_in_the_same_words(place: Place) -> None:
    """A bad region in memory gets the sentence of a bad region on disk."""
    with memory_folder() as folder:
        if folder is None:
            pytest.skip("there is no memory file system to write to")
        region = folder / "run.region"
        shutil.copy(place.region, region)
        flip_newest(region)
        assert call(*place.train(region=region)) == Result(
            1, "", f"plinius: {does_not_open(region)}\n"
        )
