"""A reader that was written from the pages alone agrees with the program, file for file."""

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cli.world import call
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import Slots
from vectors.test_region_vectors import CASES, DIGESTS, image_of

READER = Path(__file__).with_name("independent_reader.py")
FOLDER = Path(__file__).parent / "formats"
DATASETS = sorted((FOLDER / "sealed-dataset").glob("*.sealed"))
KEY_FILES = json.loads((FOLDER / "owner-key" / "cases.json").read_text(encoding="utf-8"))
CONTENT = {
    "good.sealed": "3 records, 11f58de86b699c05f2f2b3667b080b9671ce2f02c8780a2205df55712b78ec22",
    "good-unlabelled.sealed": "2 records, ",
}
GOOD = f"region {'63' * 16}, "


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "owner.key"
    OwnerKey(bytes(range(32))).save(path)
    return path


def read(key: Path, path: Path) -> str:
    """What the reader prints, without its line feed; it writes nothing else."""
    done = said(key, path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.removesuffix("\n")


def assert_refused(key: Path, path: Path) -> None:
    """Exit status 1 and one line that names the file."""
    done = said(key, path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{path}: ")
    assert done.stderr.count("\n") == 1


def said(key: Path, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(READER), str(key), str(path)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_reader_has_nothing_of_ours() -> None:
    """It imports the standard library and a cipher, and has 200 lines at most."""
    text = READER.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    modules = set()
    for node in ast.walk(ast.parse(text)):
        assert getattr(node, "id", "") not in ("__import__", "eval", "exec")
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module or "")
    ours = {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names}
    assert ours == {
        "cryptography.exceptions",
        "cryptography.hazmat.primitives.ciphers.aead",
    }
    assert "importlib" not in modules


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.name)
def test_every_dataset_opens_or_is_refused(path: Path, key: Path) -> None:
    """By its name: good ones are read to the last record."""
    if path.name.startswith("good"):
        assert read(key, path).startswith(f"dataset {'01' * 16} {CONTENT[path.name]}")
    else:
        assert_refused(key, path)


@pytest.mark.parametrize("name", DIGESTS)
def test_every_good_region_opens(name: str, key: Path) -> None:
    """With the digest that the program computes."""
    found = read(key, FOLDER / "region" / name)
    assert found == f"{GOOD}iteration 2, digest {DIGESTS[name]}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_changed_region_ends_as_written(
    case: dict[str, Any], key: Path, tmp_path: Path
) -> None:
    """The same cases as those of the program."""
    path = tmp_path / "r"
    path.write_bytes(image_of(case))
    if case["ends"] == "opens":
        assert read(key, path) == f"{GOOD}iteration 2, digest {DIGESTS[case['of']]}"
    elif case["ends"] in ("no mirror", "no commit"):
        assert read(key, path) == GOOD + case["ends"]
    else:
        assert_refused(key, path)


@pytest.mark.parametrize("case", KEY_FILES, ids=lambda case: case["name"])
def test_every_key_file_opens_or_is_refused(case: dict[str, Any], tmp_path: Path) -> None:
    """Whether it does is all that a reader shows of it."""
    key = tmp_path / "k"
    key.write_bytes(case["text"].encode("latin-1"))
    os.chmod(key, int(case["mode"], 8))
    if case["ends"] == "opens":
        read(key, FOLDER / "sealed-dataset" / "good.sealed")
    else:
        assert_refused(key, FOLDER / "sealed-dataset" / "good.sealed")


class Net(nn.Module):
    """A frozen part of its own chunk, and a convolution in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(200, 200).requires_grad_(False)
        self.conv = nn.Conv2d(3, 5, 3)
        weight = self.conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.conv.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(self.frozen(x)).mean()
        return out


def train(path: Path, key: Path) -> None:
    """A run with much that is rare: NaN, large integers, long values, growth."""
    torch.manual_seed(5)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    state: dict[str, Any] = {
        "model": model, "optimizer": optimizer, "order": torch.arange(24).reshape(2, 3, 4).mT,
        "losses": [math.nan, -math.inf, -0.0, 1e22, 5e-324] + [0.1] * 20_000, "more": None,
        "numbers": [2**63, -(2**200), 2**63 - 1],
        "half": torch.ones(3, 5, dtype=torch.bfloat16).t(), "none": torch.zeros(0, 3),
        "one": torch.tensor(1 + 2j), "é/~\U0001f600": ("a\n", b"\0" * 2000, {3: 4}),
    }  # fmt: skip
    with Mirror.open(path, load_key(key), state) as mirror:
        for iteration in range(1, 9):
            optimizer.zero_grad()
            model(torch.rand(1, 3, 200, 200)).backward()
            optimizer.step()
            state["losses"] += [iteration / 7] * 100
            if iteration == 4:
                state["more"] = torch.rand(600_000)
            mirror.mirror_out(iteration)
            assert mirror.failure is None


def test_a_real_run_has_the_digest_that_the_program_prints(key: Path, tmp_path: Path) -> None:
    """After growth, with values in a tensor, and with chunks of an older commit."""
    path = tmp_path / "run.region"
    train(path, key)
    with Region.open(path, writable=False) as region:
        mirror = Slots.open(region, load_key(key))
        assert mirror is not None
        manifest = mirror.newest()
        assert manifest is not None
        assert manifest.values_tensor is not None
        assert {8} < {*manifest.sealed_by} <= {4, 6, 8}
        assert any(spec.order not in (None, (0, 1, 2, 3)) for spec in manifest.tensors)
        identity = region.id.hex()
    printed = call("digest", "--region", path, "--key", key, "--json")
    assert printed.code == 0
    digest = json.loads(printed.stdout)["digest"]
    assert read(key, path) == f"region {identity}, iteration 8, digest {digest}"
