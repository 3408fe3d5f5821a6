"""Small disks of ext4 that fail when asked to: full, dead, read-only, or without a place to write.

They are loop devices on a file in a small memory file system, mounted for one test. Where this
process may not mount, the test is skipped.
"""

import fcntl
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.world import mounted

_SHUTDOWN, _WITHOUT_THE_LOG = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN of linux/ext4.h
_UNSEEN = 4096


@dataclass
class Disk:
    """A mounted ext4, and the folder in memory that its blocks are kept in."""

    folder: Path
    backing: Path

    def die(self) -> None:
        """From now on every read and write fails, as if the disk were gone (EIO)."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _WITHOUT_THE_LOG))
        finally:
            os.close(handle)

    def abort(self) -> None:
        """From now on it is read-only, as ext4 makes itself after an error (EROFS)."""
        subprocess.run(["mount", "-o", "remount,abort", self.folder], check=True)

    def remount(self, how: str) -> bool:
        """Mount it read-only ("ro") or writable ("rw"); whether that was let."""
        command = ["mount", "-o", f"remount,{how}", str(self.folder)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def again(self) -> None:
        """Unmount it and mount it anew: what it holds is what did last."""
        subprocess.run(["umount", self.folder], check=True)
        subprocess.run(["mount", "-o", "loop", self.backing / "disk", self.folder], check=True)


@contextmanager
def ext4(megabytes: int = 16, *, blocks: int = 24, options: str = "^has_journal") -> Iterator[Disk]:
    """A disk of so many megabytes, whose blocks have so many megabytes of memory."""
    with ExitStack() as stack:
        # Not in pytest's folder, which would be cleared while it is still mounted.
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plinius-disk-")))
        disk = Disk(root / "disk", root / "backing")
        memory = mounted(disk.backing, "-t", "tmpfs", "-o", f"size={blocks}m", "tmpfs")
        if not stack.enter_context(memory):
            pytest.skip("this process may not mount a file system")
        with (disk.backing / "disk").open("xb") as image:
            image.truncate(megabytes << 20)
        make = ["mkfs.ext4", "-q", "-b", "4096", "-O", options, str(disk.backing / "disk")]
        try:
            made = subprocess.run(make, capture_output=True).returncode == 0
        except OSError:
            made = False
        loop = mounted(disk.folder, "-o", "loop", str(disk.backing / "disk"))
        if not (made and stack.enter_context(loop)):
            pytest.skip("this process cannot mount an ext4 in a file")
        yield disk


@contextmanager
def full(folder: Path, free: int = 0) -> Iterator[None]:
    """A folder's file system has only so many bytes left; they come back at the end."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("xb", buffering=0) as file:
        while True:
            if file.write(bytes(_UNSEEN)) < _UNSEEN:
                break
    if free:
        os.truncate(filler, filler.stat().st_size - free)
        os.sync()
    try:
        yield
    finally:
        filler.unlink()
