"""The job: a file that only its owner's signature makes valid, and that says nothing unknown."""

import dataclasses
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plinius.errors import FormatError, JobError, PliniusError
from plinius.trust.declassification import declassification
from plinius.trust.job import (
    Anchor,
    Grant,
    Job,
    Metrics,
    Outputs,
    Recipe,
)
from plinius.trust.job_file import load_job, read_job, show_job, sign_job
from plinius.trust.permit import Permit
from plinius.trust.recipients import RecipientKey
from plinius.trust.signing import Signer, SigningKey

KEY = SigningKey(bytes(range(32)))
JOB = Job(
    run="any",
    expires=datetime(2030, 1, 31, tzinfo=UTC),
    measurements=(),
    recipe=Recipe("a1" * 32, "none", "fp32", (0,), 500, 8),
    metrics=Metrics(("loss",), 100, 64, 2, 10),
    outputs=Outputs(("accuracy",), (), (), 500),
    anchor=Anchor("none", 1),
    datasets=(Grant("d1" * 16, "train"), Grant("d2" * 16, "test")),
)
RECIPIENTS = [RecipientKey(bytes(range(n, n + 96))).recipient.text for n in range(3)]
DATA = sign_job(JOB, KEY)
MARK = b"[signature]\n"
NOW = datetime(2029, 1, 1, tzinfo=UTC)


def resigned(change: Callable[[bytes], bytes]) -> bytes:
    """The job with another body, signed by its owner."""
    body = change(DATA.split(MARK)[0])
    signature = KEY.sign(b"plinius-job-2\n" + body).hex()
    trailer = f'[signature]\nsigner = "{KEY.signer.public.hex()}"\ned25519 = "{signature}"\n'
    return body + trailer.encode()


def random_job(draw: random.Random) -> Job:
    """A valid job, each value anywhere within its bounds."""

    def hexes(length: int, most: int) -> tuple[str, ...]:
        return tuple({draw.randbytes(length).hex() for _ in range(draw.randrange(most))})

    def whole(low: int, high: int) -> int:
        return min(high, max(low, round(10 ** draw.uniform(0, 20)))) if draw.random() < 0.9 else low

    def some(*names: str) -> tuple[str, ...]:
        return tuple(name for name in names if draw.random() < 0.5)

    seeds = tuple({whole(0, 2**63 - 1) for _ in range(draw.randint(1, 5))})
    tested = tuple(Grant(it, draw.choice(["validate", "test"])) for it in hexes(16, 5))
    return Job(
        run=draw.choice(["any", draw.randbytes(16).hex()]),
        expires=datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=draw.randrange(10**10)),
        measurements=hexes(32, 3) + hexes(48, 3),
        recipe=Recipe(
            draw.randbytes(32).hex(),
            draw.choice(["none", draw.randbytes(32).hex()]),
            draw.choice(["fp32", "bf16"]),
            seeds,
            whole(1, 10**9),
            whole(1, 10**9),
        ),
        metrics=Metrics(
            some("loss", "average_loss"),
            whole(1, 10**9),
            whole(1, 10**9),
            draw.randint(0, 6),
            whole(1, 10**6),
        ),
        outputs=Outputs(
            some("accuracy", "digest", "predictions"),
            some("model", "a.b-c_D"),
            some(*RECIPIENTS),
            whole(1, 10**9),
        ),
        anchor=Anchor(draw.choice(["none", "broker", "tpm"]), whole(1, 10**9)),
        datasets=(*tested, Grant(draw.randbytes(16).hex(), "train")),
    )


def mutation(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """The bytes of a job, changed in one of ten ways; `other` is another valid job."""
    at, upto = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    lines = data.split(b"\n")
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    match draw.randrange(10):
        case 0:
            at = draw.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + draw.randbytes(draw.randint(1, 9)) + data[at:]
        case 2:
            return data[:at] + data[upto:]
        case 3:
            return data[:at]
        case 4:
            return data[:upto] + data[at:]
        case 5:
            lines[a], lines[b] = lines[b], lines[a]
            return b"\n".join(lines)
        case 6:
            return b"\n".join([*lines[:a], lines[b], *lines[a:]])
        case 7:  # a number in place of another
            at = draw.choice([i for i, byte in enumerate(data) if 48 <= byte < 58])
            return data[:at] + bytes([48 + draw.randrange(10)]) + data[at + 1 :]
        case 8:  # the signature of another job, or its body
            head, tail = data.split(MARK), other.split(MARK)
            return MARK.join(draw.choice([(head[0], tail[1]), (tail[0], head[1])]))
        case _:  # blanks and comments, which TOML ignores
            lines.insert(a, draw.choice([b"", b" ", b"# a comment", b"\r"]))
            return b"\n".join(lines)


def test_valid_jobs_are_accepted_and_mutated_ones_refused(request: pytest.FixtureRequest) -> None:
    """A thousand valid jobs and a mutation of each (ten thousand with --soak)."""
    draw = random.Random(11)
    tried = 10_000 if request.config.getoption("--soak") else 1_000
    previous, refused = DATA, 0
    while refused < tried:
        job = random_job(draw)
        data = sign_job(job, KEY)
        assert read_job(data, KEY.signer, "job").job == job
        mutated, before = mutation(draw, data, previous), previous
        previous = data
        if mutated in (data, before):
            continue
        with pytest.raises((JobError, FormatError)):
            read_job(mutated, KEY.signer, "job")
        refused += 1


def test_bytes_that_are_shown_without_an_owner_end_in_a_job_or_a_refusal(tmp_path: Path) -> None:
    """`show` believes any signer: whatever such a file says, it is a valid job or refused."""
    draw, host = random.Random(12), SigningKey.generate()
    shown, path = 0, tmp_path / "job"
    for _ in range(500):
        body = mutation(draw, DATA, sign_job(random_job(draw), KEY)).split(MARK)[0]
        signature = host.sign(b"plinius-job-2\n" + body).hex()
        public = host.signer.public.hex()
        trailer = f'[signature]\nsigner = "{public}"\ned25519 = "{signature}"\n'
        path.write_bytes(body + trailer.encode())
        try:
            assert show_job(path).signer.public == host.signer.public
            shown += 1
        except PliniusError:
            pass
        with pytest.raises(PliniusError):
            load_job(path, KEY.signer)
    assert 20 < shown < 480


def test_another_signer_is_refused_whoever_it_names() -> None:
    """The owner's name with a signature of the host, and the host's own job."""
    host = SigningKey.generate()
    own = sign_job(JOB, host)
    with pytest.raises(JobError, match="names signer"):
        read_job(own, KEY.signer, "job")
    named = own.replace(host.signer.public.hex().encode(), KEY.signer.public.hex().encode())
    with pytest.raises(JobError, match="is not what its owner signed"):
        read_job(named, KEY.signer, "job")
    low_order = Signer(bytes([1]) + bytes(31))
    for public in (low_order.public, bytes(32)):
        with pytest.raises((JobError, ValueError)):
            read_job(own, Signer(public), "job")


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "unknown key": (lambda b: b.replace(b"run =", b"extra = 1\nrun ="), "'extra' is unknown"),
    "unknown key in a table": (
        lambda b: b.replace(b"digits =", b"more = 1\ndigits ="),
        "metrics.'more' is unknown",
    ),
    "missing key": (lambda b: b.replace(b'run = "any"\n', b""), "run is missing"),
    "missing table": (lambda b: b.replace(b"[anchor]", b"[[anchors]]"), "'anchors' is unknown"),
    "format": (lambda b: b.replace(b"plinius-job-2", b"plinius-job-1"), "format needs"),
    "true for 1": (lambda b: b.replace(b"every = 100", b"every = true"), "metrics.every needs"),
    "a float": (lambda b: b.replace(b"every = 100", b"every = 100.0"), "metrics.every needs"),
    "zero": (lambda b: b.replace(b"every = 100", b"every = 0"), "metrics.every needs"),
    "too large": (lambda b: b.replace(b"digits = 2", b"digits = 7"), "metrics.digits needs"),
    "huge": (lambda b: b.replace(b"digits = 2", b"digits = " + b"9" * 5000), "is not TOML"),
    "upper case": (lambda b: b.replace(b"a1" * 32, b"A1" * 32), "recipe.cfg needs"),
    "a line after a digest": (
        lambda b: b.replace(b"a1" * 32, b"a1" * 32 + b"\\n"),
        "recipe.cfg needs",
    ),
    "no time zone": (lambda b: b.replace(b"00:00Z", b"00:00"), "expires needs"),
    "a time zone": (lambda b: b.replace(b"00:00Z", b"00:00+01:00"), "expires needs"),
    "no seed": (lambda b: b.replace(b"seeds = [0]", b"seeds = []"), "recipe.seeds needs"),
    "a seed twice": (lambda b: b.replace(b"[0]", b"[0, 0]"), "recipe.seeds holds a value twice"),
    "many seeds": (
        lambda b: b.replace(b"[0]", str([*range(65)]).encode()),
        "recipe.seeds needs a list of 1 to 64",
    ),
    "unknown metric": (lambda b: b.replace(b'["loss"]', b'["seconds"]'), "metrics.allowed needs"),
    "two for training": (
        lambda b: b.replace(b'"test"', b'"train"'),
        "datasets needs exactly one for training",
    ),
    "none for training": (
        lambda b: b.replace(b'"train"', b'"test"'),
        "datasets needs exactly one for training",
    ),
    "a table for a list": (
        lambda b: b.replace(b"[[datasets]]", b"[datasets.a]", 1).replace(
            b"[[datasets]]", b"[datasets.b]"
        ),
        "datasets needs a list",
    ),
    "a key twice": (lambda b: b.replace(b"run =", b'run = "any"\nrun ='), "is not TOML"),
    "no UTF-8": (lambda b: b + b"# \xff\n", "is not TOML"),
    "deep": (lambda b: b.replace(b"[0]", b"[" * 9000 + b"]" * 9000), "is not TOML"),
}


@pytest.mark.parametrize(("change", "sentence"), BAD.values(), ids=list(BAD))
def test_what_is_no_job_is_refused_even_if_its_owner_signed_it(
    change: Callable[[bytes], bytes], sentence: str
) -> None:
    """Every key is there, none other, and each value is within its bounds."""
    data = resigned(change)
    assert data != DATA
    with pytest.raises(FormatError) as refused:
        read_job(data, KEY.signer, "The job")
    assert sentence in str(refused.value)


def test_a_job_longer_than_the_bound_is_refused(tmp_path: Path) -> None:
    """65536 bytes at most, however they are signed, and the file is not read further."""
    path = tmp_path / "job"
    path.write_bytes(resigned(lambda body: body + b"#" * 65536 + b"\n"))
    with pytest.raises(FormatError, match="is no signed job"):
        read_job(path.read_bytes(), KEY.signer, "job")
    with pytest.raises(PliniusError, match="File too large"):
        load_job(path, KEY.signer)


def test_a_job_that_would_be_refused_is_not_signed() -> None:
    """Whoever signs learns of it, not the trainer."""
    bad = dataclasses.replace(JOB, run="mine")
    with pytest.raises(FormatError, match="run needs a run id of 32 hex digits, or any"):
        sign_job(bad, KEY)


def test_terms_are_what_is_computed_and_what_leaves() -> None:
    """A job signed anew with another expiry, run or anchor goes on with a run; another one not."""

    def terms(job: Job, key: SigningKey = KEY) -> str:
        return read_job(sign_job(job, key), key.signer, "job").terms

    mine = terms(JOB)
    for same in (
        dataclasses.replace(JOB, expires=datetime(2031, 1, 1, tzinfo=UTC)),
        dataclasses.replace(JOB, run="ab" * 16),
        dataclasses.replace(JOB, measurements=("cd" * 32,)),
        dataclasses.replace(JOB, anchor=Anchor("tpm", 5)),
    ):
        assert terms(same) == mine
    for other in (
        dataclasses.replace(JOB, recipe=dataclasses.replace(JOB.recipe, iterations=501)),
        dataclasses.replace(JOB, metrics=dataclasses.replace(JOB.metrics, digits=3)),
        dataclasses.replace(JOB, outputs=Outputs(("accuracy",), ("model",), (), 500)),
        dataclasses.replace(JOB, outputs=Outputs(("accuracy",), (), (RECIPIENTS[0],), 500)),
        dataclasses.replace(JOB, datasets=JOB.datasets[:1]),
    ):
        assert terms(other) != mine
    assert terms(JOB, SigningKey.generate()) != mine


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expires": NOW}, "The job expired on 2029-01-01 00:00:00 UTC"),
        ({"measurements": ("cd" * 32,)}, "nothing has attested this trainer"),
        ({"anchor": Anchor("broker", 1)}, r"needs an anchor \(broker\), and this trainer has none"),
    ],
)
def test_what_this_trainer_cannot_keep_is_refused(
    changes: dict[str, object], sentence: str
) -> None:
    """An expired job, and one that asks for attested code or an anchor, fail closed."""
    job = dataclasses.replace(JOB, **changes)  # type: ignore[arg-type]
    signed = read_job(sign_job(job, KEY), KEY.signer, "job")
    Permit(read_job(DATA, KEY.signer, "job"), NOW)
    with pytest.raises(JobError, match=sentence):
        Permit(signed, NOW)
    if "expires" not in changes:
        Permit(signed, NOW, attested=True, anchor="broker")
    if "anchor" in changes:
        with pytest.raises(JobError, match=r"needs an anchor \(broker\).* another one \(tpm\)"):
            Permit(signed, NOW, anchor="tpm")


def test_bits_follow_the_formula_on_the_page_of_threats() -> None:
    """Two metrics in 500 iterations, a validation dataset and a test dataset, and a digest."""
    grants = (*JOB.datasets, Grant("d3" * 16, "validate"))
    job = dataclasses.replace(
        JOB,
        metrics=Metrics(("loss", "average_loss"), 50, 64, 0, 15),
        outputs=Outputs(("accuracy", "digest"), (), (), 200),
        datasets=grants,
    )
    found = declassification(job)
    assert (found.release, found.releases) == (8, 10)  # 16 values each
    tests = 1 + 3  # the end; 200, 400 and the end
    assert found.total == pytest.approx(80 + 10.551708 + tests * 1 + 256)  # log2(1501) to stop
    assert found.unbounded == ()
    for recipients, unbounded in (((), ("model", "predictions")), ((RECIPIENTS[0],), ())):
        outputs = Outputs(("predictions",), ("model",), recipients, 200)
        exports = dataclasses.replace(job, outputs=outputs)
        assert declassification(exports).unbounded == unbounded
