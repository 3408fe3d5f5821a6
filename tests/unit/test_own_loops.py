"""Loops of one's own are told the truth: what is not exact, and that processes are not one."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import plinius
from plinius.errors import StateError
from plinius.keys import OwnerKey
from plinius.mirror import InexactResumeWarning, Mirror

KEY = OwnerKey(bytes(range(32)))
DATA = TensorDataset(torch.arange(8.0))


def warned(path: Path, state: dict[str, Any]) -> list[str]:
    """What a resume warns of, with the line that called mirror_in."""
    with Mirror.open(path, KEY, state) as mirror, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        mirror.mirror_in()
        if not mirror.commits:
            mirror.mirror_out(1)
    assert all(it.category is InexactResumeWarning and it.filename == __file__ for it in found)
    return [str(it.message) for it in found]


def of_threads(path: Path) -> list[str]:
    """The same without what is said of loaders that other tests left."""
    return [text for text in warned(path, {"a": 1}) if "DataLoader" not in text]


def test_another_number_of_threads_is_warned_of_once(tmp_path: Path) -> None:
    """With what to do; a first run and an exact resume warn of nothing."""
    assert of_threads(tmp_path / "r") == []
    assert of_threads(tmp_path / "r") == []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        (text,) = of_threads(tmp_path / "r")
    finally:
        torch.set_num_threads(threads)
    assert text.startswith("From iteration 1 on, this run is not bit-identical to one that was")
    assert f"threads was {threads} and is {threads + 1}" in text
    assert "torch.set_num_threads(mirror.threads()) before mirror_in" in text


def test_a_loader_that_shuffles_outside_the_state_is_warned_of(tmp_path: Path) -> None:
    """In a process of its own, where no other test left a loader."""
    done = subprocess.run(
        [sys.executable, __file__, tmp_path], capture_output=True, text=True, env=os.environ
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def look_for_loaders(tmp_path: Path) -> None:
    """Warned of, unless its generator or a loader that resumes is a part; nor in order."""
    path, generator = tmp_path / "r", torch.Generator()
    loader = DataLoader(DATA, batch_size=2, shuffle=True)
    assert warned(path, {"a": 1}) == []  # nothing was restored yet
    (text,) = warned(path, {"a": 1})
    assert text.startswith("A DataLoader that shuffles is not part of the state")
    assert "Use plinius.ResumableLoader" in text
    resumable = plinius.ResumableLoader(DATA, 2)
    warned(tmp_path / "s", {"loader": resumable})
    assert warned(tmp_path / "s", {"loader": resumable}) == []
    del loader
    loader = DataLoader(DATA, batch_size=2)
    assert warned(path, {"a": 1}) == []
    loader = DataLoader(DATA, batch_size=2, shuffle=True, generator=generator)
    warned(tmp_path / "t", {"order": generator})
    assert warned(tmp_path / "t", {"order": generator}) == []
    del loader


def test_a_plain_loader_in_the_state_is_refused_with_the_one_to_use(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(StateError, match=r"loader is a DataLoader\. Use plinius\.ResumableLo"):
        Mirror.open(tmp_path / "r", KEY, {"loader": DataLoader(DATA)})


def test_one_of_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a region is made; torchrun with one process is no different from none."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StateError, match=r"process 1 of 2, and a Mirror keeps .* Train in one"):
        Mirror.open(tmp_path / "r", KEY, {})
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    Mirror.open(tmp_path / "r", KEY, {}).close()


if __name__ == "__main__":
    look_for_loaders(Path(sys.argv[1]))
