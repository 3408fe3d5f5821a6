"""The file of a job: a text, and the signature of its bytes.

The signature is checked before anything is parsed.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plinius.errors import FormatError, JobError
from plinius.files import read_file
from plinius.jsonvalue import to_json
from plinius.trust.job import Job
from plinius.trust.job_text import ASK_AGAIN, FORMAT, job_text, parse_job
from plinius.trust.signing import PUBLIC_BYTES, SIGNATURE_BYTES, Signer, SigningKey

MAX_BYTES = 1 << 16
_SIGNATURE = re.compile(rb'\[signature\]\nsigner = "([0-9a-f]{64})"\ned25519 = "([0-9a-f]{128})"\n')
_TRAILER = len('[signature]\nsigner = ""\ned25519 = ""\n') + 2 * (PUBLIC_BYTES + SIGNATURE_BYTES)


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
        return hashlib.sha256(b"plinius-job-terms-2\n" + to_json(said)).hexdigest()


def sign_job(job: Job, key: SigningKey) -> bytes:
    """The file of a job. Raises JobError for a job that `read_job` would refuse."""
    body = job_text(job).encode()
    signature = key.sign(_message(body)).hex()
    data = (
        body
        + (f'[signature]\nsigner = "{key.signer.public.hex()}"\ned25519 = "{signature}"\n').encode()
    )
    if len(data) > MAX_BYTES:
        raise JobError(f"The job has {len(data)} bytes", f"At most {MAX_BYTES} are possible")
    parse_job(body, "The job")
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
        raise JobError(f"{name} is not what its owner signed", ASK_AGAIN)
    return SignedJob(parse_job(body, name), hashlib.sha256(data).hexdigest(), signer)


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
        raise JobError(f"{path} is not what its owner signed", ASK_AGAIN) from None
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
