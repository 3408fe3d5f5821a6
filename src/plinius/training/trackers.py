"""Metrics for W&B and MLflow: what `--metrics` would write, and nothing else of the run.

These libraries also like to send the host's name, the command with its arguments, installed
packages, the load of the machine, and their own statistics: all of that is switched off. A tracker
that fails is said in the log once, and training goes on.
"""

import importlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from plinius.errors import NotInstalledError
from plinius.files import require_name
from plinius.training.metrics import IterationMetrics, Listener, private_files, scalars

_log = logging.getLogger("plinius")
_PAUSE_S = 1.0
_PAUSE_AFTER_FAILURE_S = 60.0
_MOST_AT_ONCE = 1000  # MLflow's limit of a batch
_MOST_KEPT = 100_000
_TAG = "plinius.run_id"

_ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
_DEFAULTS = {
    # MLflow would else try for minutes, and training waits for it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def check_trackers(wandb: str | None, mlflow: str | None) -> None:
    """Raise NotInstalledError for a tracker that is asked for and not installed."""
    for name, asked in (("wandb", wandb), ("mlflow", mlflow)):
        if asked is not None:
            _library(name)


@contextmanager
def wandb_run(project: str | None, run_id: str) -> Iterator[Listener]:
    """A listener that logs metrics to a W&B project; if it is None, it does nothing.

    The W&B run has the id "plinius-" + `run_id`, so that a resumed run goes on in it. The x axis
    is the iteration: one that was computed twice, before and after a kill, is there twice. Raises
    NotInstalledError.
    """
    if project is None:
        yield _nothing
        return
    wandb = _library("wandb")
    warn = _warn_once(f"Metrics cannot be sent to the W&B project {project}")
    run = None
    with _guarded(warn):
        run = wandb.init(
            project=project,
            id=f"plinius-{run_id}",
            resume="allow",
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                host="",
                program="",
                quiet=True,
                save_code=False,
                username="",
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")

    def write(metrics: IterationMetrics) -> None:
        if run is not None:
            with _guarded(warn):
                run.log({"iteration": metrics.iteration, **scalars(metrics)})

    try:
        yield write
    finally:
        if run is not None:
            with _guarded(warn):
                run.finish()


@contextmanager
def mlflow_run(place: str | None, run_id: str) -> Iterator[Listener]:
    """A listener that logs metrics to MLflow; if `place` is None, it does nothing.

    `place` is the URI of a tracking server or database, or a folder, which gets a database
    mlflow.db. The run is in the experiment that MLFLOW_EXPERIMENT_NAME names, else in "plinius",
    and has the tag plinius.run_id, by which a resumed run finds it and goes on in it. Metrics are
    sent once a second, and after a failure once a minute, so that a kill may lose those of the
    last second. Raises NotInstalledError.
    """
    if place is None:
        yield _nothing
        return
    _library("mlflow")
    log = _MlflowLog(place, run_id)
    log.begin()
    try:
        yield log.write
    finally:
        log.end()


class _MlflowLog:
    """Metrics that wait to be sent, and the MLflow run that they are sent to, once it is found."""

    def __init__(self, place: str, run_id: str) -> None:
        self._place, self._run_id = place, run_id
        self._warn = _warn_once(f"Metrics cannot be sent to MLflow at {place}")
        self._client: Any = None
        self._run: str | None = None
        self._waiting: list[Any] = []
        self._next = 0.0

    def begin(self) -> None:
        with _guarded(self._warn):
            self._find_run()

    def write(self, metrics: IterationMetrics) -> None:
        now = int(time.time() * 1000)
        entity = importlib.import_module("mlflow.entities").Metric
        self._waiting += [
            entity(name, value, now, metrics.iteration) for name, value in scalars(metrics).items()
        ]
        if time.monotonic() >= self._next:
            self._send()

    def end(self) -> None:
        self._send()
        with _guarded(self._warn):
            if self._client is not None:
                self._client.set_terminated(self._run)

    def _send(self) -> None:
        pause = _PAUSE_AFTER_FAILURE_S
        with _guarded(self._warn):
            self._find_run()
            while self._waiting:
                self._client.log_batch(self._run, metrics=self._waiting[:_MOST_AT_ONCE])
                del self._waiting[:_MOST_AT_ONCE]
            pause = _PAUSE_S
        del self._waiting[:-_MOST_KEPT]
        self._next = time.monotonic() + pause

    def _find_run(self) -> None:
        """The run with the tag of this one, or a new one."""
        if self._run is not None:
            return
        client = _library("mlflow").MlflowClient(tracking_uri=_uri(self._place))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "plinius"
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        found = client.search_runs([number], filter_string=f"tags.`{_TAG}` = '{self._run_id}'")
        if found:
            run = found[0].info.run_id
            client.update_run(run, status="RUNNING")
        else:
            run = client.create_run(
                number, tags={_TAG: self._run_id}, run_name=f"plinius-{self._run_id[:8]}"
            ).info.run_id
        self._client, self._run = client, run


def _uri(place: str) -> str:
    """The URI of a tracking store: a folder has a database in it."""
    if ":" in place or place == "databricks":
        return place
    folder = Path(place).absolute()
    require_name(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _library(name: str) -> Any:
    """A library, with what it would send by itself switched off. Raises NotInstalledError."""
    os.environ.update(_ENVIRONMENT)
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    try:
        with _same_random_numbers():
            return importlib.import_module(name)
    except ImportError:
        raise NotInstalledError(
            f"{name} is not installed", f"Run pip install 'plinius[{name}]'"
        ) from None


@contextmanager
def _guarded(warn: Callable[[Exception], None]) -> Iterator[None]:
    """A context that ends at any error, which `warn` tells; new files are private."""
    with private_files(), _same_random_numbers():
        try:
            yield
        except Exception as error:  # whatever a library raises
            warn(error)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """A context that takes none of the process's random numbers: they are part of a run's state."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _warn_once(what: str) -> Callable[[Exception], None]:
    warned = False

    def warn(error: Exception) -> None:
        nonlocal warned
        if not warned:
            reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            _log.warning("%s: %s. Training goes on.", what, reason)
        warned = True

    return warn


def _nothing(metrics: IterationMetrics) -> None:
    """The listener of a tracker that was not asked for."""
