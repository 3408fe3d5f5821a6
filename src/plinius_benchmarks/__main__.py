"""`make bench`: every measurement in its short form, on MNIST, into build/bench of the clone."""

import shutil
import subprocess
import sys
from pathlib import Path

from plinius.data.sealed_dataset import seal_dataset
from plinius.keys import OwnerKey
from plinius.sources.idx import idx_source
from plinius_benchmarks.commands import bench

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
OUTPUT = ROOT / "build" / "bench"


def main() -> None:
    """Seal MNIST, then measure. The figures of the run before are removed."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    mnist, key_path, sealed = OUTPUT / "mnist", OUTPUT / "owner.key", OUTPUT / "mnist.sealed"
    command = [sys.executable, str(DEMO / "mnist.py"), str(mnist)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    key = OwnerKey.generate()
    key.save(key_path)
    source = idx_source(mnist / "train-images-idx3-ubyte", mnist / "train-labels-idx1-ubyte")
    seal_dataset(source, key, sealed)
    using = ["--cfg", DEMO / "mnist.cfg", "--data", sealed, "--key", key_path, "-o", OUTPUT]
    bench(["all", "--short", *map(str, using)], prog_name="plinius bench")


if __name__ == "__main__":
    main()
