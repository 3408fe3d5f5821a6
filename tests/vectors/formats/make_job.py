"""Writes the vectors of docs/formats/job.md. Run it only when the format changes."""

import json
from datetime import UTC, datetime
from pathlib import Path

from plinius.darknet.cfg import read_cfg
from plinius.darknet.recipe import recipe_digest
from plinius.trust.job import (
    Anchor,
    Grant,
    Job,
    Metrics,
    Outputs,
    Recipe,
)
from plinius.trust.job_file import read_job, sign_job
from plinius.trust.recipients import RecipientKey
from plinius.trust.signing import SigningKey

FOLDER = Path(__file__).parent / "job"
KEY, OTHER = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, 5.1: L
MARK = b"[signature]\n"
CFG = """\
# Comments, blanks and the order of keys are no part of the recipe.
[net]
max_batches = 500
batch = 128
height=28
width=28
channels=1
learning_rate=0.10
[conv]
filters=8
size=3
pad=1
batch_normalize=1
activation=leaky
[connected]
activation=linear
output=10
[softmax]
"""


def job(*recipients: str) -> Job:
    """The job of the page, or one whose model is exported for recipients."""
    return Job(
        run="any",
        expires=datetime(2030, 1, 31, tzinfo=UTC),
        measurements=(),
        recipe=Recipe(recipe_digest(read_cfg(FOLDER / "net.cfg")), "none", "fp32", (0,), 500, 8),
        metrics=Metrics(("loss",), 100, 64, 2, 10),
        outputs=Outputs(("accuracy",), ("model",) if recipients else (), recipients, 500),
        anchor=Anchor("none", 1),
        datasets=(Grant("d1" * 16, "train"), Grant("d2" * 16, "test")),
    )


def signed(body: bytes, key: SigningKey = KEY, prefix: bytes = b"plinius-job-2\n") -> bytes:
    """A body with its signature."""
    public, signature = key.signer.public.hex(), key.sign(prefix + body).hex()
    return body + f'[signature]\nsigner = "{public}"\ned25519 = "{signature}"\n'.encode()


def other_text(coded: bytes) -> bytes:
    """Base64 of the same bytes, with bits set that are behind their end."""
    return coded[:-3] + bytes([coded[-3] + 1]) + b"=="


def cases() -> dict[str, bytes]:
    """What a reader that trusts KEY refuses, by name; the one that ends in opens it accepts."""
    good = sign_job(job(), KEY)
    body, trailer = good.split(MARK)

    def but(old: bytes, new: bytes) -> bytes:
        assert body.count(old) == 1
        return signed(body.replace(old, new))

    public = RecipientKey(bytes(range(96))).recipient.text
    sealed = sign_job(job(public), KEY).split(MARK)[0]
    coded = public.encode()
    digest = trailer.split(b'"')[3]
    scalar = int.from_bytes(bytes.fromhex(digest[64:].decode()), "little") + GROUP_ORDER
    twin = digest[:64] + scalar.to_bytes(32, "little").hex().encode()
    return {
        "good": good,
        "for-a-recipient": sign_job(job(public), KEY),
        "recipient-twice": signed(sealed.replace(coded, coded + b'", "' + coded)),
        "recipient-too-short": signed(sealed.replace(coded, coded[:-4])),
        "recipient-in-another-text": signed(sealed.replace(coded, other_text(coded))),
        "recipient-by-its-id": signed(sealed.replace(coded, b"d99e4496af749b54")),
        "owners-comment": signed(b"# More.\n" + body),
        "changed-after-signing": body.replace(b"[0]", b"[1]") + MARK + trailer,
        "comment-after-signing": b"# More.\n" + good,
        "blank-line-at-the-end": good + b"\n",
        "cr-lf": good.replace(b"\n", b"\r\n"),
        "no-signature": body,
        "upper-case-signature": good.replace(digest, digest.upper()),
        "scalar-beyond-the-group-order": good.replace(digest, twin),
        "other-signer": sign_job(job(), OTHER),
        "other-signer-who-names-this-one": sign_job(job(), OTHER).replace(
            OTHER.signer.public.hex().encode(), KEY.signer.public.hex().encode()
        ),
        "signed-without-prefix": signed(body, prefix=b""),
        "unknown-key": but(b'run = "any"\n', b'run = "any"\nextra = 1\n'),
        "missing-key": but(b"digits = 2\n", b""),
        "another-format": but(b"plinius-job-2", b"plinius-job-1"),
        "boolean-for-a-number": but(b"every = 100", b"every = true"),
        "beyond-its-bound": but(b"digits = 2", b"digits = 7"),
        "seed-twice": but(b"[0]", b"[0, 0]"),
        "local-time": but(b"00:00Z", b"00:00"),
        "two-datasets-for-training": but(b'role = "test"', b'role = "train"'),
        "key-twice": but(b'run = "any"\n', b'run = "any"\nrun = "any"\n'),
        "no-utf-8": signed(body + b"# \xff\n"),
        "too-long": signed(body + b"#" * 65536 + b"\n"),
    }


OPENS = ("good", "for-a-recipient", "owners-comment")


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "net.cfg").write_text(CFG)
    for name, data in cases().items():
        (FOLDER / f"{name}.job").write_bytes(data)
    (FOLDER / "signer.pub").write_text(f"plinius-signer-1 {KEY.signer.public.hex()}\n")
    found = {
        "opens": {
            name: {"digest": read.digest, "terms": read.terms}
            for name in OPENS
            for read in [read_job(cases()[name], KEY.signer, name)]
        },
        "refused": sorted({*cases()} - {*OPENS}),
    }
    (FOLDER / "cases.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
