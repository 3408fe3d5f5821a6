"""The README's walks, command by command, as they stand there: a table, and a folder of images."""

import csv
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.world import call

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[2]


def commands(name: str) -> list[list[str]]:
    """The commands of the block in the README that begins with this demo."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```\n(python demo/{name}.*?)```", text, re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture(name="clone")
def _clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like a clone after its first command, in which the others are given."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small batches are fastest so
    shutil.copytree(ROOT / "demo", tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert call("keygen", "-o", "owner.key").code == 0
    yield tmp_path
    torch.set_num_threads(threads)


def give(command: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give one command; what it says, for those of plinius."""
    program, *arguments = command
    if program == "python":
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", arguments)
            return runpy.run_path(arguments[0], run_name="__main__")
    assert program == "plinius"
    return call(*arguments, "--json").json


def test_from_a_table_to_sealed_predictions_in_eight_commands(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pip install and keygen; at least 97 % of tumours that were not trained on."""
    walk = commands("cancer")
    assert len(walk) + len(["pip install", "plinius keygen"]) <= 8
    told = {command[1]: give(command, monkeypatch) for command in walk}
    assert told["test"]["accuracy"] >= 0.97
    parts = told["seal"]["parts"]
    assert told["test"]["samples"] == parts["test"]["count"] == 569 - parts["train"]["count"]
    assert told["predict"]["sealed"]
    with (clone / "predictions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == told["test"]["samples"]
    assert {row["prediction"] for row in rows} == {"benign", "malignant"}
    assert all(row["id"].startswith("patient ") for row in rows)


def test_from_a_folder_of_images_to_predictions_with_names(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed, trained, measured while it trains, and predicted: by the names of the folders."""
    told = {command[1]: give(command, monkeypatch) for command in commands("digits")}
    assert told["train"]["best"]["metric"] == "accuracy"
    assert told["train"]["best"]["score"] >= 0.96
    with (clone / "digits.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == told["seal"]["parts"]["test"]["count"] >= 260
    # A record's id is its file below the folder, so it begins with its class.
    right = sum(row["id"].split("/")[0] == row["prediction"] for row in rows)
    assert right / len(rows) >= 0.96
    assert "probability seven" in rows[0]
