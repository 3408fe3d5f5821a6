"""The lock: one writer at a time; a dead process holds none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plinius.errors import RegionBusyError
from plinius.pm.region import Region


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r"


def test_a_second_process_is_refused_and_let_in_when_the_first_dies(path: Path) -> None:
    """The lock ends with its process, in whatever way that ends."""
    Region.create(path, 0).close()
    code = f"""from plinius.pm.region import Region
held = Region.open({str(path)!r})
print(flush=True)
input()"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for writable in (True, False):
            with pytest.raises(RegionBusyError, match=f"{path} is in use by another process"):
                Region.open(path, writable=writable)
        holder.kill()
        holder.wait()
        Region.open(path).close()


def test_a_dead_process_holds_nothing_though_its_children_live(path: Path) -> None:
    """A data loader's workers outlive a trainer that is killed: the next run need not wait."""
    Region.create(path, 0).close()
    code = f"""import os, time
from plinius.pm.region import Region
held = Region.open({str(path)!r})
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(300)
input()"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        with pytest.raises(RegionBusyError):
            Region.open(path)
        holder.kill()
        holder.wait()
        try:
            Region.open(path).close()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_forked_child_is_refused_and_does_not_unlock_its_parents_region(path: Path) -> None:
    """Two processes that write to one region would destroy it."""
    Region.create(path, 0).close()
    code = f"""import os
from plinius.errors import RegionBusyError
from plinius.pm.region import Region
held = Region.open({str(path)!r})
held.require_held()
if os.fork() == 0:
    try:
        held.require_held()
    except RegionBusyError as error:
        print(error, flush=True)
    held.close()
    os._exit(0)
os.wait()
print("left", flush=True)
input()"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        said = [holder.stdout.readline().strip() for _ in range(2)]
        assert said == [
            "This process was forked from the one that has the region open. "
            "Open the region in the process that trains, after it was forked.",
            "left",
        ]
        with pytest.raises(RegionBusyError, match="in use by another process"):
            Region.open(path)
        holder.kill()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_mirror_refuses_in_a_forked_child_at_once(overlap: bool, tmp_path: Path) -> None:
    """Both ways; also if it seals in the background, whose thread is not in the child."""
    code = f"""import os, torch, plinius
from plinius.errors import RegionBusyError
state = {{"x": torch.zeros(3)}}
key = plinius.OwnerKey.generate()
mirror = plinius.Mirror.open({str(tmp_path / "r")!r}, key, state, overlap={overlap})
mirror.mirror_out(1)
mirror.wait()
if os.fork() == 0:
    for act in (mirror.mirror_in, lambda: mirror.mirror_out(2)):
        try:
            act()
        except RegionBusyError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
mirror.mirror_out(3)
mirror.close()
print(mirror.committed)"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    refused, again, committed = done.stdout.splitlines()
    assert refused == again
    assert refused.startswith("This process was forked from the one that has the region open. ")
    assert committed == "3"


def test_readers_share_a_region(path: Path) -> None:
    """Readers do not exclude each other, but they exclude writers."""
    Region.create(path, 0).close()
    with Region.open(path, writable=False), Region.open(path, writable=False):
        with pytest.raises(RegionBusyError):
            Region.open(path)
