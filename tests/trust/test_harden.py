"""A hardened process, from within and from another process of the same user."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.world import World, call, run
from plinius.trust import harden, landlock, seccomp
from plinius.trust.seccomp import Sockets, program
from trust.measures import require_measures_told

HERE = Path(__file__).parent
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="plinius-harden-") as name:
        path = Path(name)
        (path / "new").mkdir()
        for file in ("cfg", "region", "other"):
            (path / file).write_bytes(b"some bytes")
        for one in (path, *path.iterdir()):
            one.chmod(0o777)
        yield path


@contextmanager
def victim(folder: Path, how: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """The process of hardened.py, and what it said."""
    command = [sys.executable, str(HERE / "hardened.py"), str(folder), how]
    pipe = subprocess.PIPE
    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, limit),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline()), process
        finally:
            process.kill()


def attack(pid: int) -> list[str]:
    """The ways in which another process of the user reads that process."""
    command = [sys.executable, str(HERE / "attacker.py"), str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: list[str] = json.loads(done.stdout)
    return found


def test_a_hardened_process_is_refused_what_it_has_no_use_for(folder: Path) -> None:
    """Programs, processes, ptrace, sockets, files; what it needs still goes on."""
    with victim(folder, "hardened") as (said, _):
        tried = said["tried"]
    if seccomp.available():
        refused = {"execve", "a program", "fork", "ptrace", "udp", "unix", "listen"}
        assert {name: tried[name] for name in refused} == dict.fromkeys(refused, "PermissionError")
    if landlock.version():
        refused = {"write cfg", "another file", "new file elsewhere"}
        refused |= {"another port"} if landlock.version() >= 4 else set()
        assert {name: tried[name] for name in refused} == dict.fromkeys(refused, "PermissionError")
    for name in ("the broker", "cfg", "region", "new file", "a thread"):
        assert tried[name] == "done", name
    wanted = {one.name: one.missing for one in harden.examine() if one.missing}
    assert set(said["missing"]) == set(wanted) - {"keys in memfd_secret"}


def test_another_process_of_the_user_cannot_read_a_hardened_one(folder: Path) -> None:
    """/proc/PID/mem, process_vm_readv, ptrace and gcore read an ordinary one, and not this one."""
    with victim(folder, "ordinary") as (said, _):
        assert attack(said["pid"]) == ["read_file", "read_vector", "attach"]
    with victim(folder, "hardened") as (said, _):
        assert attack(said["pid"]) == []
        if (gcore := shutil.which("gcore")) is not None:
            user = NOBODY if os.getuid() == 0 else None
            done = subprocess.run(
                [gcore, "-o", str(folder / "core"), str(said["pid"])],
                capture_output=True, timeout=60, user=user,
            )  # fmt: skip
            assert done.returncode != 0
            assert list(folder.glob("core*")) == []


@pytest.mark.parametrize("how", ["ordinary", "hardened"])
def test_a_crash_leaves_no_core_file(folder: Path, how: str) -> None:
    """SIGSEGV with core files allowed before: an ordinary process leaves one where that is set."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    with victim(folder, how) as (_, process):
        assert process.stdin is not None
        process.stdin.write("crash\n")
        process.stdin.flush()
        assert process.wait(30) == -signal.SIGSEGV
    dumped = list(folder.rglob("core*"))
    if how == "hardened":
        assert dumped == []
    elif pattern == "core":  # else nobody can say here where it went
        assert len(dumped) == 1


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("sockets", [Sockets(), Sockets(tcp=True), Sockets(tcp=True, udp=True)])
def test_every_path_of_the_filter_ends_in_a_verdict(machine: str, sockets: Sockets) -> None:
    """All jumps lead forward, into the program; no path runs past its end."""
    code = list(struct.iter_unpack("=HBBI", program(machine, sockets)))
    assert len(code) < 4096
    for at, (kind, if_so, if_not, _) in enumerate(code):
        if kind & 7 == 5:
            assert at + 1 + max(if_so, if_not) < len(code)
    assert code[-1] == (6, 0, 0, 0x7FFF0000)


def test_the_filter_allows_the_sockets_that_it_says(folder: Path) -> None:
    """Judged by a small interpreter of classic BPF, for both processors."""
    tcp, udp, raw, unix = (2, 1), (10, 2), (2, 3), (1, 1)
    for machine, arch, number in (("x86_64", 0xC000003E, 41), ("aarch64", 0xC00000B7, 198)):
        for sockets, allowed in (
            (Sockets(), ()),
            (Sockets(tcp=True), (tcp,)),
            (Sockets(tcp=True, udp=True), (tcp, udp)),
        ):
            for family, kind in (tcp, udp, raw, unix):
                data = struct.pack("=IIQ6Q", number, arch, 0, family, kind | 0o2000000, 0, 0, 0, 0)
                verdict = interpret(program(machine, sockets), data)
                wanted = 0x7FFF0000 if (family, kind) in allowed else 0x00050001
                assert verdict == wanted, (machine, sockets, family, kind)
        other = struct.pack("=IIQ6Q", number, 0x40000003, 0, *[0] * 6)
        assert interpret(program(machine, Sockets()), other) == 0x80000000


def interpret(code: bytes, data: bytes) -> int:
    """What a filter returns for a `struct seccomp_data`."""
    lines = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        kind, if_so, if_not, k = lines[at]
        at += 1
        if kind == 0x20:
            (value,) = struct.unpack_from("=I", data, k)
        elif kind == 0x54:
            value &= k
        elif kind == 0x06:
            return int(k)
        else:
            holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[kind]
            at += if_so if holds else if_not


def test_train_hardens_itself_with_a_key_file_if_it_is_told_to(
    world: World, tmp_path: Path
) -> None:
    """And says what is in force; without --harden it says nothing of it."""
    what = ["train", world.cfg, "--data", world.data, "--threads", 1, "--key", world.key]
    (tmp_path / "tmp").mkdir()  # what is made there once must be made before it is out of reach
    (tmp_path / "board").mkdir()
    hard = ["--iterations", 1, "--harden", "--region", tmp_path / "k"]
    hard += ["--tensorboard", tmp_path / "board"]
    done = run(*what, *hard, env={"TMPDIR": str(tmp_path / "tmp")})
    assert done.code == 0, done.stderr
    require_measures_told(done.stderr)
    assert len(list((tmp_path / "board").iterdir())) == 1
    assert "ardened" not in call(*what, "--iterations", 1, "--region", tmp_path / "p").stderr


def test_the_doctor_says_what_this_kernel_has() -> None:
    """Each measure by name, and that a command has to be told to use it."""
    found = call("doctor", "--json").json["hardening"]["found"]
    for one in harden.examine():
        assert one.name in found
        assert (one.missing or "") in found
