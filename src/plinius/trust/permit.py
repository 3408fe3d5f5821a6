"""A job at work: each command asks it, before a record is opened, whether it may go on.

Each method raises JobError for what the job does not allow. What is compared is what is used: the
parsed cfg that the network is built from, the bytes of the parameters that are loaded, the id of
the dataset that was authenticated.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from plinius.darknet.cfg import Cfg
from plinius.darknet.recipe import recipe_digest
from plinius.data.sealed_dataset import DatasetHeader
from plinius.errors import JobError
from plinius.jsonvalue import Json
from plinius.snapshot import Snapshot
from plinius.training.metrics import Coarseness
from plinius.training.permission import RunSettings
from plinius.trust.job import Job
from plinius.trust.job_file import SignedJob
from plinius.trust.recipients import Recipient

_ASK = "Do what the job says (plinius job show), or ask its owner for another job"


class Permit:
    """What a signed job allows this process.

    `digest` is that of its terms, `file_digest` that of its file (both 64 hex digits).

    Raises JobError if the job has expired by the clock of this machine, or needs what this process
    does not have: code that was judged against its measurements (`attested`), an anchor of its kind
    (`anchor`).
    """

    def __init__(
        self,
        signed: SignedJob,
        now: datetime | None = None,
        *,
        attested: bool = False,
        anchor: str = "none",
    ) -> None:
        self.job, self.digest, self.file_digest = signed.job, signed.terms, signed.digest
        job = self.job
        if (now or datetime.now(UTC)) >= job.expires:
            raise JobError(
                f"The job expired on {job.expires:%Y-%m-%d %H:%M:%S} UTC",
                "Ask its owner for a new one",
            )
        if job.measurements and not attested:
            raise JobError(
                "The job is for attested code only, and nothing has attested this trainer",
                "Get the keys from the owner's broker, or ask for a job without measurements",
            )
        if job.anchor.kind not in ("none", anchor):
            raise JobError(
                f"The job needs an anchor ({job.anchor.kind}), and this trainer has "
                f"{'none' if anchor == 'none' else f'another one ({anchor})'}",
                "Ask its owner for a job with another anchor, or with none",
            )

    @property
    def coarseness(self) -> Coarseness:
        """How coarse the metrics are that leave."""
        m = self.job.metrics
        return Coarseness(frozenset(m.allowed), m.every, m.digits, m.largest)

    def until(self, wanted: int | None) -> int:
        """The iteration to train to: `wanted`, or else the last one of the job."""
        last = self.job.recipe.iterations
        if wanted is not None and wanted > last:
            raise _not_allowed(f"{wanted} iterations", f"at most {last}")
        return last if wanted is None else wanted

    def training_dataset(self, wanted: str | None) -> str:
        """The id of the dataset to train on, which is `wanted` if that is given."""
        (id_,) = (grant.id for grant in self.job.datasets if grant.role == "train")
        if wanted is not None and wanted != id_:
            raise _not_allowed(f"training on dataset {wanted}", f"dataset {id_}")
        return id_

    def run(self, wanted: str | None) -> str | None:
        """The id of the only run, or None if the job allows any."""
        if self.job.run == "any":
            return wanted
        if wanted is not None and wanted != self.job.run:
            raise _not_allowed(f"run {wanted}", f"run {self.job.run}")
        return self.job.run

    def require_training(self, cfg: Cfg, weights_sha256: str | None, settings: RunSettings) -> None:
        """What a run is made of; asked before its region and its dataset are opened."""
        wanted = self.job.recipe
        found = recipe_digest(cfg)
        if found != wanted.cfg:
            raise _not_allowed(
                f"the recipe in {cfg.name} ({found[:16]})", f"recipe {wanted.cfg[:16]}"
            )
        if (weights_sha256 or "none") != wanted.weights:
            raise _not_allowed(
                f"starting parameters {(weights_sha256 or 'none')[:16]}",
                wanted.weights[:16],
            )
        if settings.upto is not None or settings.clear:
            raise _not_allowed("--upto or --clear", "whole files of parameters, where they are")
        if settings.from_iteration is not None:  # what leaves would leave again, of other bits
            raise _not_allowed("--from-iteration", "a run that goes on")
        if settings.seed not in wanted.seeds:
            raise _not_allowed(f"seed {settings.seed}", ", ".join(map(str, wanted.seeds)))
        if settings.precision != wanted.precision:
            raise _not_allowed(f"precision {settings.precision}", wanted.precision)
        require_enough(self.job, cfg.net.batch)
        self.training_dataset(settings.dataset_id or "none")
        self.run(settings.run_id)

    def require_run(self, snapshot: Snapshot) -> None:
        """The state that something is asked of belongs to a run of this job."""
        require_job_of(snapshot, self.digest)

    def require_accuracy(self, snapshot: Snapshot, header: DatasetHeader) -> int:
        """The accuracy may leave; returns to how many decimal places."""
        roles = self._roles_beside_training(header, "testing")
        self._require_output(
            "accuracy", snapshot, self.job.outputs.every if "validate" in roles else 0
        )
        self._require_records(header)
        return self.job.metrics.digits

    def require_validation(self, header: DatasetHeader, every: int) -> None:
        """A run may be validated on this dataset after every `every` iterations."""
        if "validate" not in self._roles_beside_training(header, "validating"):
            raise _not_allowed(f"validating on dataset {header.id.hex()}", "testing on it")
        self._require_allowed("accuracy")
        self._require_records(header)
        if every % self.job.outputs.every:
            raise _not_allowed(
                f"validating after every {every} iterations",
                f"after multiples of {self.job.outputs.every}",
            )

    def accuracy_of(self, result: dict[str, Json], digits: int) -> dict[str, Json]:
        """What may leave of the result of a test: an accuracy, or a mean average precision."""
        for name in ("accuracy", "mean_average_precision"):
            if isinstance(value := result.get(name), float):
                return {name: round(value, digits), "samples": result["samples"]}
        self.refuse("the errors of a regression")

    def require_predictions(self, snapshot: Snapshot, header: DatasetHeader) -> None:
        """Outputs of the network for a dataset may leave."""
        self._roles_beside_training(header, "predicting")
        self._require_output("predictions", snapshot)

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """Whom exports and predictions are sealed to; none: they may leave in clear."""
        return tuple(Recipient.of_text(text) for text in self.job.outputs.recipients)

    def require_sealed(self, path: Path) -> None:
        """An output may leave in this file: a sealed one, if the job names recipients."""
        if self.job.outputs.recipients and path.suffix != ".sealed":
            raise _not_allowed(
                f"an output in clear ({path.name[:64]})", "a .sealed file, for its recipients"
            )

    def _roles_beside_training(self, header: DatasetHeader, what: str) -> set[str]:
        """The roles of a dataset; one at least is to validate or to test."""
        roles = {str(grant.role) for grant in self.job.datasets if grant.id == header.id.hex()}
        if not roles & {"validate", "test"}:
            raise _not_allowed(
                f"{what} on dataset {header.id.hex()}",
                ", ".join(it.id for it in self.job.datasets if it.role != "train") or "no dataset",
            )
        return roles

    def _require_records(self, header: DatasetHeader) -> None:
        if header.count < self.job.metrics.records:
            raise _not_allowed(
                f"an accuracy over {header.count} records", f"at least {self.job.metrics.records}"
            )

    def refuse(self, what: str) -> NoReturn:
        """No job can allow it."""
        raise _not_allowed(what, "what plinius job show lists")

    def require_digest(self, snapshot: Snapshot) -> None:
        """The digest of the state may leave."""
        self._require_output("digest", snapshot)

    def require_export(self, snapshot: Snapshot, part: str) -> None:
        """The parameters of one part of the state may leave."""
        self.require_run(snapshot)
        if part not in self.job.outputs.exports:
            raise _not_allowed(
                f"exporting {part[:64]!r}", ", ".join(self.job.outputs.exports) or "no export"
            )
        self._require_last(snapshot)

    def _require_output(self, name: str, snapshot: Snapshot, every: int = 0) -> None:
        self.require_run(snapshot)
        self._require_allowed(name)
        if not (every and snapshot.iteration and snapshot.iteration % every == 0):
            self._require_last(snapshot)

    def _require_allowed(self, name: str) -> None:
        if name not in self.job.outputs.allowed:
            allowed = ", ".join(self.job.outputs.allowed) or "none"
            raise _not_allowed(f"the output {name!r}", allowed)

    def _require_last(self, snapshot: Snapshot) -> None:
        last = self.job.recipe.iterations
        if snapshot.iteration != last:
            raise _not_allowed(
                f"an output at iteration {snapshot.iteration}", f"one at iteration {last}"
            )


def require_job_of(snapshot: Snapshot, digest: str | None) -> None:
    """Raise JobError unless the run of a state belongs to the job given, or to none if None."""
    owned = snapshot.identity.get("job")
    if owned == digest:
        return
    if digest is None:
        raise JobError(
            f"This run belongs to job {str(owned)[:16]}",
            "Give that job and its owner's public file (--job, --owner)",
        )
    raise JobError(
        f"This run belongs to {'no job' if owned is None else f'job {str(owned)[:16]}'}, "
        f"not to job {digest[:16]}",
        "Give the job that the run began with, or name another region (--region)",
    )


def require_enough(job: Job, batch: int) -> None:
    """Raise JobError if a batch, or the iterations of one release, have too few records."""
    if batch < job.recipe.minimum_batch:
        raise _not_allowed(f"a batch of {batch}", f"at least {job.recipe.minimum_batch}")
    if job.metrics.allowed and job.metrics.every * batch < job.metrics.records:
        raise _not_allowed(
            f"a metric over {job.metrics.every * batch} records",
            f"at least {job.metrics.records}",
        )


def _not_allowed(what: str, allowed: str) -> JobError:
    return JobError(f"The job does not allow {what}, only: {allowed}", _ASK)
