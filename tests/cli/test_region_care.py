"""Commands that look after a region: log, ls, diff, backup, compact, going back, a run in use."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.world import (
    CFG,
    ITERATIONS,
    PLINIUS,
    RECORDS,
    World,
    call,
    digest_of,
    memory_folder,
    mounted,
)
from plinius.errors import RegionBusyError
from plinius.key_file import load_key
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.training.trainer import Run, Settings


@pytest.fixture(scope="module")
def kept(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A region that keeps commits 16 and 24, and one as the best."""
    region = tmp_path_factory.mktemp("kept") / "run.region"
    settings = Settings(world.cfg, world.data, threads=1, keep=2, keep_every=8)
    with Run(region, load_key(world.key), settings) as run:
        run.train(11, 1, lambda _: None)
        assert run.mirror.keep("best")
        run.train(ITERATIONS, 1, lambda _: None)
    return region


def read(command: str, region: Path, world: World, *more: object) -> Any:
    return call(*command.split(), *more, region, "--key", world.key, "--json").json


def test_the_log_lists_what_can_be_gone_back_to(kept: Path, world: World) -> None:
    """With the key as with none, but for the metrics; a table that fits 60 columns."""
    listed = read("region log", kept, world)
    rows = [(one["name"], one["commit"], one["iteration"]) for one in listed["commits"]]
    assert rows == [("best", 11, 11), ("16", 16, 16), ("24", 24, 24), ("newest", 24, 24)]
    assert all(one["usable"] and one["nbytes"] > 4096 for one in listed["commits"])
    assert all(0 < one["metrics"]["average_loss"] < 3 for one in listed["commits"])
    assert listed["kept_bytes"] == sum(one["nbytes"] for one in listed["commits"][:3])
    bare = call("region", "log", kept, "--json").json
    assert [one["iteration"] for one in bare["commits"]] == [11, 16, 24, None]
    table = call("region", "log", kept)
    assert max(map(len, table.stdout.splitlines())) <= 60
    assert table.stdout.startswith("commit  iteration   MB  name    copied at\n    11         11  ")
    assert table.stderr.startswith("3 kept commits take ")


def test_a_kept_commit_is_tested_predicted_with_and_exported(
    kept: Path, world: World, tmp_path: Path
) -> None:
    """By name or number; `newest` is the default; one that is not kept is refused."""
    use = ["--region", kept, "--key", world.key]
    held = ["--data", world.held_out]
    for commit, iteration in (("best", 11), ("11", 11), ("16", 16), ("newest", 24)):
        found = call("test", world.cfg, *held, *use, "--commit", commit, "--json").json
        assert found["iteration"] == iteration
    out = ["-o", tmp_path / "best.safetensors"]
    assert call("export", *use, *out, "--commit", "best", "--json").json["iteration"] == 11
    out = ["-o", tmp_path / "p.sealed"]
    said = call("predict", world.cfg, *held, *use, *out, "--commit", "best", "--json").json
    assert said["iteration"] == 11
    assert call("digest", *use, "--commit", "16", "--json").json["iteration"] == 16
    assert call("digest", *use, "--commit", "12").stderr == (
        f"plinius: {kept} keeps no commit 12. Choose one of those that plinius region log lists "
        "with the key.\n"
    )


def test_ls_lists_the_tensors_and_diff_says_which_differ(
    kept: Path, world: World, trained: Path
) -> None:
    """Two commits of one run differ in what is trained; equal runs do not differ."""
    tensors = {one["name"]: one for one in read("region ls", kept, world)["tensors"]}
    assert "float32" in {one["dtype"] for one in tensors.values()}
    assert all(one["bytes"] >= 0 and len(one["sha256"]) == 64 for one in tensors.values())
    text = call("region", "ls", kept, "--key", world.key)
    assert len(text.stdout.splitlines()) == len(tensors)
    assert set(call("region", "ls", kept, "--json").json["extents"]) == {
        "dataset", "mirror", "kept:16", "kept:24", "kept:best",
    }  # fmt: skip
    same = call("region", "diff", kept, trained, "--key", world.key, "--json").json
    assert (same["equal"], same["different"], same["identity"]) == (True, [], {})
    differs = ["region", "diff", kept, kept, "--key", world.key, "--commit", "best", "--json"]
    found = call(*differs).json
    assert (found["equal"], found["iterations"]) == (False, [11, 24])
    assert 0 < len(found["different"]) <= len(tensors)
    assert found["only_in_first"] == found["only_in_second"] == []


def test_going_back_with_another_learning_rate_is_kept_by_the_run(
    kept: Path, world: World, tmp_path: Path
) -> None:
    """Later processes have it without being told, the log shows it, and it computes with it."""
    region, whole, lines = tmp_path / "run.region", tmp_path / "whole.region", tmp_path / "m"
    for copy in (region, whole):
        shutil.copy(kept, copy)
    back = ["--from-iteration", 16, "--set", "learning_rate=0.02"]
    first = call(*world.train(region, *back, "--iterations", 18, "--metrics", lines))
    told = "went back with learning_rate=0.02, which takes the place of the cfg's 0.1."
    assert (first.code, told in first.stderr) == (0, True), first.stderr
    assert call(*world.train(region, *back, "--iterations", 20)).code == 0  # not back again
    last = call(*world.train(region, "--metrics", lines, "--json"))
    assert last.json["learning_rate"] == 0.02 and told in last.stderr
    rates = {m["iteration"]: m["rate"] for m in map(json.loads, lines.read_text().splitlines())}
    for at in (17, 24):
        assert rates[at] == pytest.approx(0.02 * (1 - at / ITERATIONS) ** 4)
    call(*world.train(whole, *back))
    assert digest_of(region, world.key) == digest_of(whole, world.key)
    assert digest_of(region, world.key) != digest_of(kept, world.key)
    log = read("region log", region, world)
    assert log["went_back"] == [[24, 24, 16, 16]]
    assert log["commits"][-1]["metrics"]["learning_rate"] == 0.02
    other = call(*world.train(region, "--from-iteration", 16, "--set", "learning_rate=0.03"))
    assert "learning_rate=0.03" in other.stderr
    assert len(read("region log", region, world)["went_back"]) == 2
    for value in ("learning_rate=x", "learning_rate=-1", "learning_rate=nan", "momentum=1", "3"):
        refused = call(*world.train(region, "--from-iteration", 16, "--set", value))
        assert (refused.code, "is not like learning_rate=0.01" in refused.stderr) == (2, True)
    alone = call(*world.train(region, "--set", "learning_rate=1"))
    assert (alone.code, "--set is for --from-iteration" in alone.stderr) == (2, True)


def test_going_back_continues_from_there_and_is_told_ever_after(
    kept: Path, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends as a run that was never left; the same command resumes and does not go back twice."""
    region = tmp_path / "run.region"
    shutil.copy(kept, region)
    train = world.train(region, "--from-iteration", 16)
    first = call(*train, "--iterations", 20)
    told = "this run went back from iteration 24 to iteration 16 (commits 24 and 16)."
    assert "WENT BACK from commit 24 (iteration 24) to commit 16 (iteration 16)" in caplog.text
    caplog.clear()
    assert told in first.stderr
    again = call(*train, "--json")
    assert (again.json["resumed_at"], again.json["iteration"]) == (20, ITERATIONS)
    assert "WENT BACK" not in caplog.text
    assert told in again.stderr
    assert digest_of(region, world.key) == digest_of(kept, world.key)
    assert read("region log", region, world)["went_back"] == [[24, 24, 16, 16]]
    assert (
        "Went back from commit 24 (iteration 24) to commit 16"
        in call("region", "log", region, "--key", world.key).stderr
    )
    newest = world.train(region, "--from-iteration", ITERATIONS)
    assert call(*newest).code == call(*newest).code == 0  # it is there already
    assert len(read("region log", region, world)["went_back"]) == 2
    refused = call(*world.train(region, "--from-iteration", 5))
    assert refused.code == 1
    assert refused.stderr.splitlines()[-1] == (
        f"plinius: {region} keeps no commit of iteration 5. Choose one of those that plinius "
        "region log lists with the key."
    )
    nowhere = call(*world.train(tmp_path / "new.region", "--from-iteration", 5))
    assert nowhere.stderr.splitlines()[-1] == (
        f"plinius: There is no region {tmp_path}/new.region to go back in. Name the region of the "
        "run, or leave out --from-iteration."
    )
    assert not (tmp_path / "new.region").exists()
    alone = call(*world.train(tmp_path / "new.region", "--keep-every", 2))
    assert (alone.code, "--keep-every is for --keep" in alone.stderr) == (2, True)


def test_compacting_drops_what_is_named_and_gives_its_storage_back(
    kept: Path, world: World, tmp_path: Path
) -> None:
    """Where the file system makes holes; everything else stays; an unknown name changes nothing."""
    region = tmp_path / "run.region"
    shutil.copy(kept, region)
    before = region.read_bytes()
    assert call("region", "compact", region, "--drop", "16", "--drop", "14").stderr == (
        f"plinius: {region} keeps no commit 14. Choose one of those that plinius region log "
        "lists.\n"
    )
    assert region.read_bytes() == before
    done = call("region", "compact", region, "--drop", "16", "--drop", "best", "--json").json
    assert done["dropped"] == ["16", "best"]
    assert done["bytes_after"] <= done["bytes_before"]
    names = [one["name"] for one in read("region log", region, world)["commits"]]
    assert names == ["24", "newest"]
    assert read("verify", region, world)["records_open"] == RECORDS
    assert digest_of(region, world.key) == digest_of(kept, world.key)


def test_a_backup_is_the_region_and_takes_no_name_that_is_taken(
    kept: Path, world: World, tmp_path: Path
) -> None:
    """Its commits, kept ones and records; a run goes on in it; refusals leave no file."""
    copy = tmp_path / "copy.region"
    said = call("region", "backup", kept, copy, "--key", world.key, "--json").json
    assert (said["commit"], said["mirror_opens"]) == (24, 24)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert read("region log", copy, world) == read("region log", kept, world)
    assert call(*world.train(copy)).code == 0
    taken = call("region", "backup", kept, copy)
    assert taken.stderr == (
        f"plinius: {copy} exists already. Choose another name, or remove it first.\n"
    )
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for source, sentence in (
        (fifo, f"Cannot read {fifo}: Not a regular file. Check the path and its permissions."),
        (world.data, f"{world.data} is not a Plinius region. Name a region, or a file that is not "
         "there yet."),
        (tmp_path / "no", f"Cannot read {tmp_path}/no: No such file or directory. Check the path "
         "and its permissions."),
    ):  # fmt: skip
        refused = call("region", "backup", source, tmp_path / "other")
        assert (refused.code, refused.stderr) == (1, f"plinius: {sentence}\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.region", "fifo"]
    cut = tmp_path / "cut.region"
    cut.write_bytes(kept.read_bytes()[: -(1 << 16)])
    refused = call("region", "backup", cut, tmp_path / "other")
    assert "is cut short" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_read_only_disk_is_read_and_not_written_to(kept: Path, world: World) -> None:
    """What only reads works there; what writes is refused by its sentence."""
    with memory_folder() as folder:
        if folder is None:
            pytest.skip("there is no memory file system")
        disk = folder / "disk"
        with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs") as there:
            if not there:
                pytest.skip("this process may not mount a file system")
            region = disk / "run.region"
            shutil.copy(kept, region)
            shutil.copy(world.data, disk / "data.sealed")
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            assert read("verify", region, world)["kept_open"] == ["16", "24", "best"]
            assert read("verify", disk / "data.sealed", world)["ok"]
            assert len(read("region log", region, world)["commits"]) == 4
            backup = call("region", "backup", region, disk / "copy.region")
            keys = ["--key", world.key, "--new-key", world.other_key]
            for file in (region, disk / "data.sealed"):
                refused = call("rekey", file, *keys)
                assert (refused.code, "Read-only file system" in refused.stderr) == (1, True)
            assert backup.stderr == (
                f"plinius: Cannot write {disk}/copy.region: Read-only file system. Free some space "
                "or choose another folder.\n"
            )
            compact = call("region", "compact", region)
            assert (compact.code, "Read-only file system" in compact.stderr) == (1, True)


def test_a_full_disk_leaves_no_half_backup(kept: Path) -> None:
    """One sentence, and no file."""
    with memory_folder() as folder:
        if folder is None:
            pytest.skip("there is no memory file system")
        disk = folder / "disk"
        with mounted(disk, "-t", "tmpfs", "-o", "size=64k", "tmpfs") as there:
            if not there:
                pytest.skip("this process may not mount a file system")
            refused = call("region", "backup", kept, disk / "copy.region")
            assert refused.stderr == (
                f"plinius: Cannot write {disk}/copy.region: No space left on device. Free some "
                "space or choose another folder.\n"
            )
            assert [*disk.iterdir()] == []


@contextmanager
def trainer(world: World, folder: Path) -> Iterator[tuple[Path, Path, subprocess.Popen[str]]]:
    """A real process that trains on until it is stopped; gives its region and its metrics."""
    cfg, region, metrics = folder / "long.cfg", folder / "run.region", folder / "m.jsonl"
    cfg.write_text(CFG.replace("max_batches=24", "max_batches=1000000"))
    command = world.train(region, "--metrics", metrics, "--keep", 2, "--keep-every", 5)
    command[1] = cfg
    process = subprocess.Popen(
        [PLINIUS, *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not metrics.exists() or metrics.read_text().count("\n") < 20:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield cfg, region, process
    finally:
        process.kill()
        process.wait()


def test_everything_that_reads_works_on_a_region_in_use(world: World, tmp_path: Path) -> None:
    """While a trainer commits again and again, each command reads one whole commit, a backup opens,
    and the trainer goes on. Killed then, it leaves commits that can all be gone back to.
    """
    with trainer(world, tmp_path) as (cfg, region, process):
        with pytest.raises(RegionBusyError):
            Region.open(region)
        use, held = ["--region", region, "--key", world.key], ["--data", world.held_out]
        iterations = [call("digest", *use, "--json").json["iteration"] for _ in range(10)]
        deadline = time.monotonic() + 60
        while iterations[-1] == iterations[0]:  # a reader sees what is new, if not at once
            iterations.append(call("digest", *use, "--json").json["iteration"])
            assert time.monotonic() < deadline
        assert iterations == sorted(iterations)
        assert call("inspect", region, "--json").json["kind"] == "region"
        assert call("region", "info", region, "--json").json["mirror"]["commits"] >= 20
        assert read("verify", region, world)["records_open"] == RECORDS
        assert len(read("region log", region, world)["commits"]) >= 3
        assert call("test", cfg, *held, *use, "--json").json["iteration"] >= iterations[-1]
        out = ["-o", tmp_path / "p.sealed"]
        assert call("predict", cfg, *held, *use, *out, "--json").json["sealed"]
        assert call("export", *use, "-o", tmp_path / "m.safetensors").code == 0
        for number in range(5):
            copy = tmp_path / f"copy{number}.region"
            said = call("region", "backup", region, copy, "--key", world.key, "--json").json
            assert said["mirror_opens"] >= iterations[-1]
            with Region.open(copy) as opened:  # its structure is whole, and a run goes on in it
                opened.consistency_check()
                slots = Slots.open(opened, load_key(world.key))
                assert slots is not None
                newest = slots.newest()
                assert newest is not None
                slots.snapshot(newest)
                slots.close()
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        log = read("region log", region, world)["commits"]
        assert all(one["usable"] for one in log)
        assert len(log) in (3, 4)  # a kill may leave one more than was to be kept
        assert log[-1]["iteration"] >= said["mirror_opens"]
        assert read("verify", region, world)["kept_open"] == sorted(one["name"] for one in log[:-1])
