"""What runs in the emulated machine also runs here, where a mistake in it is found at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.world import World
from dax import guest


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line.removeprefix("plinius: ")) for line in lines]


@pytest.mark.parametrize("task", ["engine", "torch"])
def test_a_task_that_is_started_again_resumes_and_ends_with_the_same_state(
    task: str,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """First a part of it, then the rest; its output is what run.py compares."""
    monkeypatch.setattr(guest, "WORLD", world.folder)
    until = {"engine": "ENGINE_UNTIL", "torch": "TORCH_UNTIL"}[task]
    for folder, ends in (("whole", (12,)), ("parts", (5, 12))):
        (tmp_path / folder).mkdir()
        for end in ends:
            monkeypatch.setattr(guest, until, end)
            assert guest.TASKS[task](tmp_path / folder) == 0
    lines = told(capsys)
    assert [line["resumed"] for line in lines if "resumed" in line] == [None, None, 5]
    digests = [line["digest"] for line in lines if line.get("iteration") == 12]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    if task == "torch":
        assert [line["digest"] for line in lines if line.get("whole") == 12][-1] == digests[0]
