"""The vectors of the job: read by the program, and by a reader that knows only the page."""

import json
import re
import tomllib
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from plinius.darknet.cfg import read_cfg
from plinius.darknet.recipe import recipe_digest
from plinius.errors import FormatError, JobError
from plinius.trust.job_file import read_job
from plinius.trust.signing import load_signer
from vectors.formats import make_job
from vectors.test_format_pages import rows

FOLDER = Path(__file__).parent / "formats" / "job"
CASES: dict[str, Any] = json.loads((FOLDER / "cases.json").read_text())
PUBLIC = (FOLDER / "signer.pub").read_text().split()[1]
PAGE = Path(__file__).parents[2] / "docs" / "formats" / "job.md"
TRAILER = re.compile(rb'\[signature\]\nsigner = "([0-9a-f]{64})"\ned25519 = "([0-9a-f]{128})"\n')


def digests_by_the_page(data: bytes) -> dict[str, str]:
    """Digest and terms of a job. Raises ValueError for what the page refuses."""
    trailer = TRAILER.fullmatch(data[-229:])
    if len(data) > 65536 or trailer is None or trailer[1].decode() != PUBLIC:
        raise ValueError("form")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC))
    try:
        key.verify(bytes.fromhex(trailer[2].decode()), b"plinius-job-2\n" + data[:-229])
    except InvalidSignature:
        raise ValueError("signature") from None
    said = tomllib.loads(data[:-229].decode())
    text = PAGE.read_text(encoding="utf-8").split("## The body")[1].split("## ")[0]
    keys = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    found = {name for name in said if not isinstance(said[name], dict)}
    for name in ("recipe", "metrics", "outputs", "anchor"):
        found |= {f"{name}.{key}" for key in said[name]}
    found |= {f"datasets.{key}" for grant in said["datasets"] for key in grant}
    if found != keys or said["format"] != "plinius-job-2":
        raise ValueError("keys")
    whole = {**said["metrics"], **said["recipe"]}
    if any(type(whole[key]) is not int for key in ("every", "digits")) or whole["digits"] > 6:
        raise ValueError("bounds")
    if len(set(whole["seeds"])) != len(whole["seeds"]) or said["expires"].tzinfo is None:
        raise ValueError("values")
    if [grant["role"] for grant in said["datasets"]].count("train") != 1:
        raise ValueError("roles")
    recipients = said["outputs"]["recipients"]
    for text in recipients:
        public = b64decode(text, validate=True)
        if len(public) != 1216 or b64encode(public).decode() != text:
            raise ValueError("recipient")
    if len(set(recipients)) != len(recipients) or len(recipients) > 16:
        raise ValueError("recipients")
    terms = {name: said[name] for name in ("datasets", "metrics", "outputs", "recipe")}
    text = json.dumps(terms | {"signer": PUBLIC}, sort_keys=True, separators=(",", ":"))
    return {
        "digest": sha256(data).hexdigest(),
        "terms": sha256(b"plinius-job-terms-2\n" + text.encode()).hexdigest(),
    }


@pytest.mark.parametrize("name", CASES["opens"])
def test_a_valid_job_opens_with_the_digests_that_are_written_down(name: str) -> None:
    """By the program and by the page."""
    data = (FOLDER / f"{name}.job").read_bytes()
    read = read_job(data, load_signer(FOLDER / "signer.pub"), name)
    assert {"digest": read.digest, "terms": read.terms} == CASES["opens"][name]
    assert digests_by_the_page(data) == CASES["opens"][name]


@pytest.mark.parametrize("name", CASES["refused"])
def test_a_job_that_is_not_of_the_format_is_refused(name: str) -> None:
    """By the program and by the page."""
    data = (FOLDER / f"{name}.job").read_bytes()
    with pytest.raises((FormatError, JobError)):
        read_job(data, load_signer(FOLDER / "signer.pub"), name)
    with pytest.raises(ValueError):  # noqa: PT011
        digests_by_the_page(data)


def test_the_files_are_those_that_the_program_writes_today() -> None:
    """Signatures are deterministic, so a change of the format shows here."""
    assert {path.stem: path.read_bytes() for path in FOLDER.glob("*.job")} == make_job.cases()
    assert (FOLDER / "net.cfg").read_text() == make_job.CFG
    assert sorted([*CASES["opens"], *CASES["refused"]]) == sorted(make_job.cases())


def test_the_values_on_the_page_are_those_of_the_files() -> None:
    """The recipe of net.cfg as the page spells it out, the digests, and the signature shown."""
    text = (
        '[["net",{"batch":128,"channels":1,"height":28,"inputs":784,"learning_rate":0.1,'
        '"width":28}],["convolutional",{"activation":"leaky","batch_normalize":1,"filters":8,'
        '"pad":1,"size":3}],["connected",{"activation":"linear","output":10}],["softmax",{}]]'
    )
    digest = sha256(b"plinius-recipe-1\n" + text.encode()).hexdigest()
    assert rows("job.md")["recipe digest"] == digest == recipe_digest(read_cfg(FOLDER / "net.cfg"))
    assert {key: rows("job.md")[key] for key in ("digest", "terms")} == CASES["opens"]["good"]
    shown = PAGE.read_text(encoding="utf-8").split("```\n")[1]
    assert (FOLDER / "good.job").read_text().endswith(shown)
    assert len(shown) == 229
