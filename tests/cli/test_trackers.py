"""Metrics for W&B and MLflow: what the metrics file gets, in one run of theirs, whatever fails."""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.world import World, call, digest_of


def mlflow_history(place: str) -> dict[str, dict[int, list[float]]]:
    """Every value in the one run that a store holds, by metric and step."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    client = mlflow.MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("plinius")
    (run,) = client.search_runs([experiment.experiment_id])
    assert {*run.data.tags} == {"plinius.run_id", "mlflow.runName"}
    assert (run.data.params, run.info.status) == ({}, "FINISHED")
    found: dict[str, dict[int, list[float]]] = {}
    for name in run.data.metrics:
        for one in client.get_metric_history(run.info.run_id, name):
            found.setdefault(name, {}).setdefault(one.step, []).append(one.value)
    return found


def test_mlflow_has_what_the_metrics_file_has(world: World, tmp_path: Path) -> None:
    """The same numbers, once each, in one run, also after a resume; the state is that without."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    region, lines, folder = tmp_path / "r", tmp_path / "m.jsonl", tmp_path / "ml"
    for until in (2, 5):
        more = ("--iterations", until, "--mlflow", folder, "--metrics", lines)
        told = call(*world.train(region, *more))
        assert told.code == 0 and "Training goes on" not in told.stderr, told.stderr
    found = mlflow_history(f"sqlite:///{folder / 'mlflow.db'}")
    metrics = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {*found} == {*metrics[0]} - {"iteration", "validation"}
    for name, values in found.items():
        assert values == {m["iteration"]: [pytest.approx(m[name])] for m in metrics}
    assert (folder / "mlflow.db").stat().st_mode & 0o777 == 0o600
    call(*world.train(tmp_path / "plain", "--iterations", 5))
    assert digest_of(region, world.key) == digest_of(tmp_path / "plain", world.key)


def test_a_job_keeps_its_losses_from_mlflow(world: World, tmp_path: Path) -> None:
    """Means over 100 iterations leave, of which a run of 24 has none."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    assert call("keygen", "--signing", "-o", tmp_path / "sign").code == 0
    data = ["--data", world.data, "--key", world.key, "--sign", tmp_path / "sign"]
    assert call("job", "create", world.cfg, *data, "-o", tmp_path / "job").code == 0
    job = ["--job", tmp_path / "job", "--owner", tmp_path / "sign.pub"]
    told = call(*world.train(tmp_path / "r", *job, "--mlflow", tmp_path))
    assert told.code == 0, told.stderr
    found = mlflow_history(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "rate" in found and not {"loss", "average_loss"} & {*found}


def test_wandb_logs_offline_and_nothing_of_the_machine(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, one id; no name of the host, of the key or of the cfg is in what it wrote."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    region = tmp_path / "r"
    for until in (2, 5):
        told = call(*world.train(region, "--iterations", until, "--wandb", "p", "--json"))
        assert told.code == 0 and "Training goes on" not in told.stderr, told.stderr
    name = f"plinius-{told.json['run_id']}"
    written = list(tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb"))
    assert len(written) == 2
    for path in written:
        data = path.read_bytes()
        assert b"average_loss" in data
        for secret in (
            sys.argv[0],
            platform.node(),
            world.key.name,
            world.cfg.name,
            world.data.name,
        ):
            assert secret.encode() not in data
    call(*world.train(tmp_path / "plain", "--iterations", 5))
    assert digest_of(region, world.key) == digest_of(tmp_path / "plain", world.key)


@pytest.mark.parametrize("option", ["wandb", "mlflow"])
def test_a_tracker_that_fails_does_not_stop_training(
    option: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """One warning, however many iterations follow."""
    pytest.importorskip(option, reason=f"{option} is not installed")
    monkeypatch.chdir(tmp_path)
    value = {"wandb": "no/project", "mlflow": "http://127.0.0.1:9"}[option]
    told = call(*world.train(tmp_path / "r", "--iterations", 3, f"--{option}", value))
    assert told.code == 0, told.stderr
    warnings = [it for it in caplog.messages if "Training goes on." in it]
    assert len(warnings) == 1 and value in warnings[0]


@pytest.mark.parametrize("option", ["wandb", "mlflow"])
def test_a_tracker_that_cannot_be_used_is_refused(
    option: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not installed, without a name, or in a hardened process: before a region is made."""
    train = world.train(tmp_path / "r", "--iterations", 1, f"--{option}")
    assert "--wandb names a project" in call(*train, "").stderr
    assert "which --harden and --broker forbid" in call(*train, "x", "--harden").stderr
    monkeypatch.setitem(sys.modules, option, None)  # an import of it fails
    refused = call(*train, "x")
    assert refused.code == 1
    assert f"{option} is not installed. Run pip install 'plinius[{option}]'." in refused.stderr
    assert not (tmp_path / "r").exists()
