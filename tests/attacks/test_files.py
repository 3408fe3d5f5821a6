"""What a host puts where this program makes or reads files."""

import os
import stat
from pathlib import Path

import pytest

from cli.world import World, call
from plinius.errors import KeyFileError, StorageError
from plinius.files import publish
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.training.metrics import tensorboard
from unit.mirroring import KEY


def test_a_link_in_the_place_of_a_new_region_is_not_written_through(tmp_path: Path) -> None:
    """NAME.creating is made anew, or refused; what the link names stays as it was."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "run.region.creating").symlink_to(precious)
    with pytest.raises(StorageError, match=r"run\.region\.creating is in the way of a new region"):
        Region.create(tmp_path / "run.region", 0)
    assert precious.read_bytes() == b"precious"
    (tmp_path / "run.region.creating").unlink()
    os.mkfifo(tmp_path / "run.region.creating")
    with pytest.raises(StorageError, match="is in the way of a new region, and is no file"):
        Region.create(tmp_path / "run.region", 0)


def test_a_hard_link_in_the_place_of_a_new_region_is_refused(tmp_path: Path) -> None:
    """It is another file under that name."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "run.region.creating").hardlink_to(precious)
    with pytest.raises(Exception, match="exists already"):
        Region.create(tmp_path / "run.region", 0)
    assert precious.read_bytes() == b"precious"


def test_a_link_in_the_place_of_a_part_is_not_written_through(tmp_path: Path) -> None:
    """It is removed, not followed."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "out.part").symlink_to(precious)
    with publish(tmp_path / "out") as file:
        file.write(b"new")
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / "out").read_bytes() == b"new"


def test_whatever_is_made_is_private(world: World, tmp_path: Path) -> None:
    """Whatever the umask: keys, sealed data, regions, metrics, exports."""
    before = os.umask(0)
    try:
        OwnerKey.generate().save(tmp_path / "owner.key")
        with publish(tmp_path / "sealed") as file:
            file.write(b"x")
        Mirror.open(tmp_path / "a.region", KEY, {"n": 1}).close()
        region, metrics = tmp_path / "b.region", tmp_path / "metrics.jsonl"
        options = ("--data", world.data, "--region", region, "--key", world.key)
        told = call("train", world.cfg, *options, "--iterations", 2, "--metrics", metrics)
        assert told.code == 0, told.stderr
        out = tmp_path / "net.safetensors"
        with tensorboard(tmp_path / "board", 0):
            pass
        call("export", world.cfg, "--region", region, "--key", world.key, "-o", out)
    finally:
        os.umask(before)
    (board,) = (tmp_path / "board").iterdir()
    assert stat.S_IMODE(board.stat().st_mode) == 0o600
    board.unlink()
    (tmp_path / "board").rmdir()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(
        ("owner.key", "sealed", "a.region", "b.region", "metrics.jsonl", "net.safetensors"), 0o600
    )


@pytest.mark.parametrize("what", ["fifo", "device"])
@pytest.mark.parametrize("option", ["cfg", "data", "weights", "key"])
def test_what_is_no_file_is_not_read(option: str, what: str, world: World, tmp_path: Path) -> None:
    """Neither waited for nor read without end."""
    bad = tmp_path / "bad"
    if what == "fifo":
        os.mkfifo(bad)
    else:
        bad = Path("/dev/zero")
    files = {"cfg": world.cfg, "data": world.data, "key": world.key} | {option: bad}
    weights = ("--weights", bad) if option == "weights" else ()
    told = call(
        "train", files["cfg"], "--data", files["data"], "--key", files["key"],
        "--region", tmp_path / "new.region", *weights,
    )  # fmt: skip
    assert told.code == 1
    assert "ot a regular file" in told.stderr or "is not a file" in told.stderr
    assert not (tmp_path / "new.region").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    """Whoever owns the file can change the key under this run."""
    path = tmp_path / "owner.key"
    OwnerKey.generate().save(path)
    os.chown(path, 4711, -1)
    with pytest.raises(KeyFileError, match=r"belongs to another user \(uid 4711\). Make a key of"):
        load_key(path)
