"""The job: what an owner authorises a trainer to compute, and what may leave it.

A job is a text in TOML and a signature of its bytes: docs/formats/job.md. The signature is checked
before anything is parsed. Every key must be there, none other may be, and every value is bounded.
"""

import hashlib
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from plinius.errors import FormatError, JobError
from plinius.files import read_file
from plinius.jsonvalue import to_json
from plinius.trust.signing import PUBLIC_BYTES, SIGNATURE_BYTES, Signer, SigningKey

FORMAT = "plinius-job-1"
MAX_BYTES = 1 << 16
MAX_COUNT = 10**9
MAX_DIGITS = 6
MAX_LARGEST = 10**6
MAX_ITEMS = 64

METRICS = ("loss", "average_loss")
OUTPUTS = ("accuracy", "digest", "predictions")
ROLES = ("train", "validate", "test")
ANCHORS = ("none", "broker", "tpm")
PRECISIONS = ("fp32", "bf16")

_SIGNATURE = re.compile(rb'\[signature\]\nsigner = "([0-9a-f]{64})"\ned25519 = "([0-9a-f]{128})"\n')
_TRAILER = len('[signature]\nsigner = ""\ned25519 = ""\n') + 2 * (PUBLIC_BYTES + SIGNATURE_BYTES)
_NEXT = "Ask the owner for the job again, as plinius job create wrote it"

Role = Literal["train", "validate", "test"]


@dataclass(frozen=True)
class Recipe:
    """What is computed.

    `cfg` is the recipe digest of the network, `weights` the SHA-256 of the file of starting
    parameters ("none": they are drawn from the seed). A run takes one of `seeds`, and has at most
    `iterations`, each of at least `minimum_batch` records.
    """

    cfg: str
    weights: str
    precision: str
    seeds: tuple[int, ...]
    iterations: int
    minimum_batch: int


@dataclass(frozen=True)
class Grant:
    """A dataset (id in hex) and what it may be used for. One is for training."""

    id: str
    role: Role


@dataclass(frozen=True)
class Metrics:
    """Which metrics leave during training, and how coarse.

    Each is a mean over `every` iterations, which have at least `records` records together,
    limited to 0..`largest` and rounded to `digits` decimal places. `records` and `digits` hold for
    the accuracy too.
    """

    allowed: tuple[str, ...]
    every: int
    records: int
    digits: int
    largest: int


@dataclass(frozen=True)
class Outputs:
    """What may be asked of a run, and which parts of its state may be exported in clear.

    At its last iteration, and the accuracy on a validation dataset also at each multiple of
    `every`.
    """

    allowed: tuple[str, ...]
    exports: tuple[str, ...]
    every: int


@dataclass(frozen=True)
class Anchor:
    """Where the newest commit has to be remembered, and after how many commits at the latest."""

    kind: str
    every: int


@dataclass(frozen=True)
class Job:
    """What an owner authorises. `run` is the id of the only run, or "any"; `expires` is in UTC.

    `measurements` are those of the trainer's code that may do the job (hex); none: any code.
    """

    run: str
    expires: datetime
    measurements: tuple[str, ...]
    recipe: Recipe
    metrics: Metrics
    outputs: Outputs
    anchor: Anchor
    datasets: tuple[Grant, ...]


@dataclass(frozen=True)
class SignedJob:
    """A job whose signature was checked. `digest` is the SHA-256 of its file, 64 hex digits."""

    job: Job
    digest: str
    signer: Signer

    @property
    def terms(self) -> str:
        """SHA-256 of what is computed and what may leave, and of whose job it is (64 hex digits).

        It belongs to the identity of a run. A job that is signed again with another expiry, run,
        measurements or anchor has the same terms, so a run can go on under it.
        """
        job = self.job
        said: dict[str, Any] = {
            "signer": self.signer.public.hex(),
            "recipe": asdict(job.recipe),
            "metrics": asdict(job.metrics),
            "outputs": asdict(job.outputs),
            "datasets": [asdict(grant) for grant in job.datasets],
        }
        return hashlib.sha256(b"plinius-job-terms-1\n" + to_json(said)).hexdigest()


def sign_job(job: Job, key: SigningKey) -> bytes:
    """The file of a job. Raises JobError for a job that `read_job` would refuse."""
    body = _text(job).encode()
    signature = key.sign(_message(body)).hex()
    data = (
        body
        + (f'[signature]\nsigner = "{key.signer.public.hex()}"\ned25519 = "{signature}"\n').encode()
    )
    if len(data) > MAX_BYTES:
        raise JobError(f"The job has {len(data)} bytes", f"At most {MAX_BYTES} are possible")
    _parse(body, "The job")
    return data


def read_job(data: bytes, signer: Signer, name: str) -> SignedJob:
    """The job in the bytes of a file, if `signer` signed it; `name` is used in messages.

    Raises JobError for another signer or signature, FormatError for a text that is no job.
    """
    body, public, signature = _split(data, name)
    if public != signer.public:
        raise JobError(
            f"{name} names signer {public.hex()[:16]}, but the owner's is "
            f"{signer.public.hex()[:16]}",
            "Give the job of this owner, or its owner's public file (--owner)",
        )
    if not signer.verifies(_message(body), signature):
        raise JobError(f"{name} is not what its owner signed", _NEXT)
    return SignedJob(_parse(body, name), hashlib.sha256(data).hexdigest(), signer)


def load_job(path: Path, signer: Signer) -> SignedJob:
    """The job in a file, as `read_job`. Also raises StorageError."""
    return read_job(read_file(path, MAX_BYTES), signer, str(path))


def show_job(path: Path) -> SignedJob:
    """The job in a file, without checking who signed it.

    The signature is checked against that signer, so it says that the file is whole, not whose it
    is. Raises as `load_job` does.
    """
    data = read_file(path, MAX_BYTES)
    public = _split(data, str(path))[1]
    try:
        signer = Signer(public)
    except ValueError:
        raise JobError(f"{path} is not what its owner signed", _NEXT) from None
    return read_job(data, signer, str(path))


def _message(body: bytes) -> bytes:
    """What is signed. The prefix keeps a job's signature from being one of something else."""
    return f"{FORMAT}\n".encode() + body


def _split(data: bytes, name: str) -> tuple[bytes, bytes, bytes]:
    """(body, public half of the signer, signature)."""
    match = _SIGNATURE.fullmatch(data[-_TRAILER:])
    if match is None or len(data) > MAX_BYTES:
        raise FormatError(f"{name} is no signed job", "Name a file made by plinius job create")
    return data[:-_TRAILER], bytes.fromhex(match[1].decode()), bytes.fromhex(match[2].decode())


def _text(job: Job) -> str:
    def texts(values: tuple[str, ...]) -> str:
        return "[" + ", ".join(f'"{value}"' for value in values) + "]"

    r, m, o = job.recipe, job.metrics, job.outputs
    lines = [
        "# Written by plinius job create. The signature covers every byte before [signature].",
        f'format = "{FORMAT}"',
        f'run = "{job.run}"',
        f"expires = {job.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        f"measurements = {texts(job.measurements)}",
        "\n[recipe]",
        *(f'{key} = "{getattr(r, key)}"' for key in ("cfg", "weights", "precision")),
        f"seeds = {list(r.seeds)}",
        f"iterations = {r.iterations}",
        f"minimum_batch = {r.minimum_batch}",
        "\n[metrics]",
        f"allowed = {texts(m.allowed)}",
        *(f"{key} = {getattr(m, key)}" for key in ("every", "records", "digits", "largest")),
        "\n[outputs]",
        f"allowed = {texts(o.allowed)}",
        f"exports = {texts(o.exports)}",
        f"every = {o.every}",
        "\n[anchor]",
        f'kind = "{job.anchor.kind}"',
        f"every = {job.anchor.every}",
        *(f'\n[[datasets]]\nid = "{it.id}"\nrole = "{it.role}"' for it in job.datasets),
    ]
    return "\n".join(lines) + "\n\n"


# Reading: each check raises _BadKeyError with the key; _parse turns that into one sentence.


class _BadKeyError(Exception):
    pass


Check = Callable[[object, str], Any]


def _whole(low: int, high: int) -> Check:
    def check(value: object, key: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _BadKeyError(f"{key} needs a whole number from {low} to {high}")
        return value

    return check


def _text_as(pattern: str, wanted: str) -> Check:
    def check(value: object, key: str) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise _BadKeyError(f"{key} needs {wanted}")
        return value

    return check


def _one_of(names: tuple[str, ...]) -> Check:
    return _text_as("|".join(names), " or ".join(names))


def _several(item: Check, least: int = 0) -> Check:
    def check(value: object, key: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not least <= len(value) <= MAX_ITEMS:
            raise _BadKeyError(f"{key} needs a list of {least} to {MAX_ITEMS} values")
        found = tuple(item(it, key) for it in value)
        if len(set(found)) != len(found):
            raise _BadKeyError(f"{key} holds a value twice")
        return found

    return check


def _moment(value: object, key: str) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo != UTC or value.microsecond:
        raise _BadKeyError(
            f"{key} needs a time in UTC in whole seconds, such as 2030-01-31T00:00:00Z"
        )
    return value


def _table(made: Callable[..., Any], **checks: Check) -> Check:
    def check(value: object, key: str) -> Any:
        given = cast(dict[str, object], value) if isinstance(value, dict) else {}
        where = f"{key}." if key else ""
        for name in given:
            if name not in checks:
                raise _BadKeyError(f"{where}{name[:40]!r} is unknown")
        for name in checks:
            if name not in given:
                raise _BadKeyError(f"{where}{name} is missing")
        return made(**{name: it(given[name], where + name) for name, it in checks.items()})

    return check


_COUNT = _whole(1, MAX_COUNT)
_SHA = "[0-9a-f]{64}"
_JOB = _table(
    lambda format, **rest: Job(**rest),
    format=_one_of((FORMAT,)),
    run=_text_as("[0-9a-f]{32}|any", "a run id of 32 hex digits, or any"),
    expires=_moment,
    measurements=_several(_text_as("[0-9a-f]{64}|[0-9a-f]{96}", "digests of 64 or 96 hex digits")),
    recipe=_table(
        Recipe,
        cfg=_text_as(_SHA, "a digest of 64 hex digits"),
        weights=_text_as(f"{_SHA}|none", "a digest of 64 hex digits, or none"),
        precision=_one_of(PRECISIONS),
        seeds=_several(_whole(0, 2**63 - 1), least=1),
        iterations=_COUNT,
        minimum_batch=_COUNT,
    ),
    metrics=_table(
        Metrics,
        allowed=_several(_one_of(METRICS)),
        every=_COUNT,
        records=_COUNT,
        digits=_whole(0, MAX_DIGITS),
        largest=_whole(1, MAX_LARGEST),
    ),
    outputs=_table(
        Outputs,
        allowed=_several(_one_of(OUTPUTS)),
        exports=_several(_text_as("[A-Za-z0-9_.-]{1,64}", "names of parts of the state")),
        every=_COUNT,
    ),
    anchor=_table(Anchor, kind=_one_of(ANCHORS), every=_COUNT),
    datasets=_several(
        _table(Grant, id=_text_as("[0-9a-f]{32}", "an id of 32 hex digits"), role=_one_of(ROLES)),
        least=1,
    ),
)


def _parse(body: bytes, name: str) -> Job:
    """The job that a body says. Raises FormatError."""
    try:
        job = cast(Job, _JOB(tomllib.loads(body.decode()), ""))
        if sum(grant.role == "train" for grant in job.datasets) != 1:
            raise _BadKeyError("datasets needs exactly one for training")
        return job
    except (ValueError, RecursionError):
        raise FormatError(f"{name} is not TOML in UTF-8", _NEXT) from None
    except _BadKeyError as bad:
        raise FormatError(f"{name}: {bad}", _NEXT) from None
