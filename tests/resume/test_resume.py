"""Resuming: whatever stopped a run and wherever it resumes, it ends as an uninterrupted one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli.world import CFG, ITERATIONS, PLINIUS, World, call, digest_of, memory_folder
from plinius.key_file import load_key
from plinius.slots import newest_snapshot
from plinius.snapshot import Snapshot
from plinius.training.trainer import Run, Settings


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Trainers in the test's process leave its torch as it was."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def stopped(world: World, region: Path, at: int, *more: object, cfg: Path | None = None) -> None:
    """A run that was asked for only so many iterations."""
    told = call(*_train(world, region, "--iterations", at, *more, cfg=cfg))
    assert told.code == 0, told.stderr
    assert newest_snapshot(region, load_key(world.key)).iteration == at


def ended(world: World, region: Path, *more: object, cfg: Path | None = None) -> str:
    """The digest of a run that is resumed to its end."""
    told = call(*_train(world, region, *more, "--json", cfg=cfg))
    assert told.json["iteration"] == ITERATIONS, told.stderr
    return digest_of(region, world.key)


def test_a_stopped_run_ends_with_the_same_digest(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """Stopped after 1 and after 17 iterations, it says so twice and ends as the whole run did."""
    region = tmp_path / "run.region"
    stopped(world, region, 1)
    stopped(world, region, 17)
    told = call(*world.train(region, "--json"))
    assert told.json["resumed_at"] == 17
    assert "Resumed at iteration 17, bit-identical." in told.stderr
    assert digest_of(region, world.key) == digest_of(trained, world.key)


@pytest.mark.parametrize(
    ("name", "changes", "options"),
    [
        ("subdivisions", [("subdivisions=1", "subdivisions=4")], []),
        ("bf16", [], ["--precision", "bf16"]),
        ("seed", [], ["--seed", "9"]),
        ("random rates", [("policy=poly", "policy=random")], []),
        ("burn-in", [("policy=poly", "policy=poly\nburn_in=12")], []),
        ("epochs that end inside batches", [("batch=8", "batch=24")], []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_recipe_resumes_bit_for_bit(
    world: World,
    trained: Path,
    tmp_path: Path,
    name: str,
    changes: list[tuple[str, str]],
    options: list[str],
) -> None:
    """With each of these choices, stopped and whole runs end the same, and not as the plain one."""
    cfg, text = tmp_path / "other.cfg", CFG
    for old, new in changes:
        assert old in text, name
        text = text.replace(old, new, 1)
    cfg.write_text(text)
    whole, halves = tmp_path / "whole.region", tmp_path / "halves.region"
    digest = ended(world, whole, *options, cfg=cfg)
    stopped(world, halves, 11, *options, cfg=cfg)
    assert ended(world, halves, *options, cfg=cfg) == digest
    assert digest != digest_of(trained, world.key)


@pytest.mark.parametrize("every", [5, 100])
def test_mirroring_seldom_changes_the_cost_not_the_state(
    world: World, trained: Path, tmp_path: Path, every: int
) -> None:
    """--mirror-every N commits every N-th iteration and the last; the run ends the same."""
    region, metrics = tmp_path / "run.region", tmp_path / "m.jsonl"
    stopped(world, region, 13, "--mirror-every", every, "--metrics", metrics)
    mirrored = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [m["iteration"] for m in mirrored] == list(range(1, 14))
    assert [m["iteration"] for m in mirrored if m["mirror_bytes"]] == [
        iteration for iteration in range(1, 14) if iteration % every == 0
    ]
    commits = call("region", "info", region, "--json").json["mirror"]["commits"]
    assert commits == -(-13 // every)  # every N-th, and the last
    assert ended(world, region, "--mirror-every", every) == digest_of(trained, world.key)


def test_a_stop_between_mirrors_costs_what_was_not_mirrored(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """With --mirror-every 5, a run that dies at iteration 13 resumes from 10, and ends the same."""
    region = tmp_path / "run.region"
    settings = Settings(world.cfg, world.data, threads=1)

    def dies(iteration: int) -> None:
        if iteration == 13:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Run(region, load_key(world.key), settings) as run,
    ):
        run.train(ITERATIONS, 5, lambda metrics: dies(metrics.iteration))
    told = call(*world.train(region, "--mirror-every", 5, "--json"))
    assert told.json["resumed_at"] == 10
    assert digest_of(region, world.key) == digest_of(trained, world.key)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_commit(world: World, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM: exit 75 with a sentence, all mirrored though it was due seldom."""
    cfg, metrics = tmp_path / "long.cfg", tmp_path / "m.jsonl"
    cfg.write_text(CFG.replace("max_batches=24", "max_batches=1000000"))
    region, whole = tmp_path / "run.region", tmp_path / "whole.region"
    seldom = ["--metrics", metrics, "--mirror-every", 1000000, "--json"]
    process = subprocess.Popen(
        [PLINIUS, *map(str, _train(world, region, *seldom, cfg=cfg))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    told = json.loads(stdout)
    at = told["iteration"]
    assert (told["done"], told["resumed_at"]) == (False, 0)
    assert at >= 1
    assert f"Stopped at iteration {at}, mirrored; the same command resumes it." in stderr
    assert newest_snapshot(region, load_key(world.key)).iteration == at
    assert len(metrics.read_text().splitlines()) == at
    for place in (region, whole):
        more = _train(world, place, "--iterations", at + 3, "--mirror-every", 50, cfg=cfg)
        assert call(*more).code == 0
    assert digest_of(region, world.key) == digest_of(whole, world.key)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_start_is_a_stop_too(
    world: World, tmp_path: Path, number: signal.Signals
) -> None:
    """A signal while torch is still being imported ends the run in order, not with a trace."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Hit:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            sys.meta_path.remove(self)\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Hit())\n"
    )
    region = tmp_path / "run.region"
    done = subprocess.run(
        [PLINIUS, *map(str, world.train(region, "--json"))],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 75, done.stderr
    assert "Stopped at iteration 0, mirrored; the same command resumes it." in done.stderr
    assert json.loads(done.stdout)["iteration"] == 0


def test_another_thread_count_is_reported_as_not_exact(world: World, tmp_path: Path) -> None:
    """Other --threads than the mirrored run's are accepted, and the loss of exactness reported."""
    region = tmp_path / "run.region"
    stopped(world, region, 5)
    told = call(*_train(world, region, "--iterations", 6, "--threads", 2))
    assert told.code == 0
    assert told.stderr.splitlines()[0] == (
        "Resumed at iteration 5; from here it is NOT bit-exact: threads was 1 and is 2."
    )
    told = call(*_train(world, region, "--iterations", 7, "--threads", 2))
    assert told.stderr.splitlines()[0] == (
        "Resumed at iteration 6; since iteration 5 it is NOT bit-exact."
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_the_thread_count_is_part_of_the_run(world: World, tmp_path: Path, threads: int) -> None:
    """Without --threads a resumed run takes the mirrored count, whatever the machine offers."""
    region, at = tmp_path / "run.region", ["--iterations", "5", "--threads", threads]
    assert call(*_train(world, region, *at)).code == 0
    torch.set_num_threads(3)
    arguments = _train(world, region)
    del arguments[arguments.index("--threads") :]
    told = call(*arguments)
    assert told.code == 0
    assert told.stderr.splitlines()[0] == "Resumed at iteration 5, bit-identical."
    environment = newest_snapshot(region, load_key(world.key)).environment
    assert environment["threads"] == threads
    assert environment["torch"] == torch.__version__


def test_another_torch_is_reported_as_not_exact(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch of another version than the mirrored run's is named."""
    region = tmp_path / "run.region"
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "2.0.0")
        stopped(world, region, 2)
    told = call(*world.train(region))
    assert told.stderr.splitlines()[0] == (
        "Resumed at iteration 2; from here it is NOT bit-exact: "
        f"torch was 2.0.0 and is {str(torch.__version__)[:16]}."
    )


def test_the_digest_is_of_the_state_wherever_it_lies(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """A copied region, one trained again and one in memory have the same digest."""
    copy, again = tmp_path / "copy.region", tmp_path / "again.region"
    shutil.copy(trained, copy)
    digest = digest_of(trained, world.key)
    assert digest_of(copy, world.key) == digest
    assert ended(world, again) == digest
    assert again.read_bytes() != trained.read_bytes()
    with memory_folder() as folder:
        if folder is None:
            pytest.skip("there is no memory file system to write to")
        stopped(world, folder / "run.region", 9)
        moved = tmp_path / "moved.region"
        shutil.copy(folder / "run.region", moved)
        assert ended(world, moved) == digest
        assert ended(world, folder / "run.region") == digest


def test_the_dataset_is_needed_once(world: World, trained: Path, tmp_path: Path) -> None:
    """After the first start the dataset's file may be deleted: the region holds a copy."""
    region, data = tmp_path / "run.region", tmp_path / "train.sealed"
    shutil.copy(world.data, data)
    there = replace(world, data=data)
    stopped(there, region, 3)
    data.unlink()
    assert ended(there, region) == digest_of(trained, world.key)


def test_the_records_of_the_file_are_not_read_again(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """Once it is loaded, its ciphertext may be altered without any effect."""
    region, data = tmp_path / "run.region", tmp_path / "train.sealed"
    shutil.copy(world.data, data)
    there = replace(world, data=data)
    stopped(there, region, 3)
    raw = data.read_bytes()
    data.write_bytes(raw[:1024] + bytes(len(raw) - 1024))
    assert ended(there, region) == digest_of(trained, world.key)


def forget_the_generator(run: Run) -> None:
    """Draw other dropout masks."""
    run.network.generator.manual_seed(1234)


def forget_the_momentum(run: Run) -> None:
    """Start with momenta of zero."""
    for state in run._optimizer.state.values():
        state["momentum_buffer"].zero_()


def forget_the_iteration(run: Run) -> None:
    """Draw other records, at another rate."""
    run.iteration -= 1


def forget_the_rolling_statistics(run: Run) -> None:
    """Lose what batch normalisation averaged."""
    for name, buffer in run.network.named_buffers():
        if "rolling" in name:
            buffer.zero_()


def forget_nothing(_: Run) -> None:
    """Leave all as it was restored."""


@pytest.mark.parametrize(
    "forget",
    [
        forget_nothing,
        forget_the_generator,
        forget_the_momentum,
        forget_the_iteration,
        forget_the_rolling_statistics,
    ],
)
def test_each_part_of_the_state_decides_what_follows(
    world: World, trained: Path, tmp_path: Path, forget: Callable[[Run], None]
) -> None:
    """A resume that lost any one part would end with other parameters or statistics."""
    region = tmp_path / "run.region"
    stopped(world, region, 10)
    with Run(region, load_key(world.key), Settings(world.cfg, world.data, threads=1)) as run:
        assert run.iteration == 10
        forget(run)
        run.train(ITERATIONS, 100, lambda _: None)
    found = _parameters(newest_snapshot(region, load_key(world.key)))
    wanted = _parameters(newest_snapshot(trained, load_key(world.key)))
    assert (found == wanted) is (forget is forget_nothing)


def test_masks_of_dropout_enter_the_digest(world: World, trained: Path, tmp_path: Path) -> None:
    """The same run without dropout has another digest: the masks are drawn, and they matter."""
    cfg, region = tmp_path / "no-dropout.cfg", tmp_path / "run.region"
    cfg.write_text(CFG.replace("probability=.3", "probability=0"))
    ended(world, region, cfg=cfg)
    plain = newest_snapshot(region, load_key(world.key))
    masked = newest_snapshot(trained, load_key(world.key))
    assert _parameters(plain) != _parameters(masked)
    assert _generator(plain) != _generator(masked)


def test_a_resumed_state_is_restored_bit_for_bit(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """Opening a run and taking its snapshot gives the mirrored digest, before any step."""
    region = tmp_path / "run.region"
    shutil.copy(trained, region)
    with Run(region, load_key(world.key), Settings(world.cfg, world.data, threads=1)) as run:
        assert run.mirror.digest(run.iteration) == digest_of(trained, world.key)


def test_two_processes_train_the_same(world: World, trained: Path, tmp_path: Path) -> None:
    """Another process with another hash seed and another folder ends with the same digest."""
    region = tmp_path / "run.region"
    done = subprocess.run(
        [sys.executable, "-m", "plinius", *map(str, world.train(region))],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert digest_of(region, world.key) == digest_of(trained, world.key)


def _train(world: World, region: Path, *more: object, cfg: Path | None = None) -> list[object]:
    return replace(world, cfg=cfg or world.cfg).train(region, *more)


def _parameters(snapshot: Snapshot) -> dict[str, bytes]:
    return {t.name: bytes(t.data) for t in snapshot.tensors if t.name.startswith("model/")}


def _generator(snapshot: Snapshot) -> bytes:
    return next(bytes(t.data) for t in snapshot.tensors if t.name == "dropout")
