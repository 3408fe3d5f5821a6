"""`make test-package`: the source distribution and the wheel, built, installed elsewhere, and used.

Each is installed by pip into a fresh environment outside the clone, and trains there, resumes and
ends with the digest of a run that was not interrupted. Then an example runs from a fresh clone.

So that torch is not installed twice more, a fresh environment does not install what the package
depends on: it reads the packages of .venv (but not its editable plinius, whose .pth file is not
followed from there). That what the package declares is there, in versions that it accepts, is
checked by itself; that the index has it is what `make setup` shows.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sysconfig.get_path("purelib")
FIRST, LAST = 5, 10  # iterations
CFG = """\
[net]
batch=4
height=4
width=4
channels=1
learning_rate=0.1
momentum=0.9
max_batches=10

[convolutional]
batch_normalize=1
filters=3
size=3
stride=1
pad=1
activation=leaky

[avgpool]

[softmax]
groups=1
"""
DECLARED = """
from importlib.metadata import requires, version
from packaging.requirements import Requirement
import plinius
for text in requires("plinius"):
    needed = Requirement(text)
    if needed.marker is None or needed.marker.evaluate({"extra": ""}):
        assert needed.specifier.contains(version(needed.name)), f"{text}: {version(needed.name)}"
assert version("plinius") == plinius.__version__
print(plinius.__file__)
"""


def main() -> None:
    """Build, look into, install, use."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plinius-package-") as name:
        folder = Path(name)
        built = folder / "dist"
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, ROOT)
        (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
        look_into(wheel, sdist)
        for artefact in (wheel, sdist):
            python = install(artefact, folder / artefact.name.rpartition("-")[2])
            use(python, folder / f"use-{artefact.name}")
            print(f"ok: {artefact.name}, {artefact.stat().st_size // 1024} KiB", flush=True)
        example(python, folder)
    print(f"ok: an example from a fresh clone; {time.monotonic() - began:.0f} s in all")


def run(*command: object, cwd: Path | None = None) -> str:
    """Its output; if it fails, what it said."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nFAILED: {' '.join(map(str, command))}")
    return done.stdout


def look_into(wheel: Path, sdist: Path) -> None:
    """The wheel holds the package alone, for every CPython from 3.11; the sdist what it takes."""
    assert "-cp311-abi3-linux" in wheel.name, wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.partition("/")[0] for name in names}
    assert rooms == {"plinius", next(room for room in rooms if room.endswith(".dist-info"))}, rooms
    assert {"plinius/py.typed", "plinius/pm/_persist.abi3.so"} <= {*names}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    wanted = {name for name in listed.stdout.split("\n") if not name.startswith(".")} - {""}
    assert wanted <= packed, f"not in the source distribution: {sorted(wanted - packed)}"


def install(artefact: Path, where: Path) -> Path:
    """The interpreter of a fresh environment that has the artefact."""
    run(sys.executable, "-m", "venv", "--without-pip", where)
    python = where / "bin" / "python"
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(own) / "packages-of-venv.pth").write_text(f"{PACKAGES}\n")
    options = ["--no-deps", "--no-index", "--ignore-installed", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, artefact)
    found = run(python, "-c", DECLARED, cwd=where).strip()
    assert found.startswith(own), f"plinius was imported from {found}"
    return python


def use(python: Path, folder: Path) -> None:
    """Train in two parts and in one: equal digests."""
    folder.mkdir()
    plinius = python.parent / "plinius"
    (folder / "tiny.cfg").write_text(CFG)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 1, 4, 4), np.uint8)
    np.savez(folder / "tiny.npz", x=images, y=np.arange(24) % 3)
    run(plinius, "keygen", "-o", "owner.key", cwd=folder)
    run(plinius, "seal", "--key", "owner.key", "-o", "tiny.sealed", "--npz", "tiny.npz", cwd=folder)
    digests = []
    for region, ends in (("parts", (FIRST, LAST)), ("whole", (LAST,))):
        at = ["--region", f"{region}.region", "--key", "owner.key"]
        for end in ends:
            train = [plinius, "train", "tiny.cfg", "--data", "tiny.sealed", *at, "--threads", 1]
            run(*train, "--iterations", end, cwd=folder)
        digests.append(json.loads(run(plinius, "digest", *at, "--json", cwd=folder)))
    assert digests[0] == digests[1], digests
    assert digests[0]["iteration"] == LAST, digests


def example(python: Path, folder: Path) -> None:
    """The CNN, from a clone of what is committed."""
    clone = folder / "clone"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        sys.exit("FAILED: the example needs a git checkout to clone")
    run("git", "clone", "--quiet", "--no-hardlinks", ROOT, clone)
    said = run(python, clone / "examples" / "cnn.py", "--iterations", 10, cwd=folder)
    assert "digest" in said, said


if __name__ == "__main__":
    main()
