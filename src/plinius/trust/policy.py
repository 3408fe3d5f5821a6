"""The policy of an owner: which evidence gets the keys of which job. A TOML file, read strictly.

docs/trust.md describes it. Every key is known or refused; nothing is ignored.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinius.errors import FormatError, StorageError
from plinius.files import read_file
from plinius.trust.dcap import MAX_COLLATERAL_BYTES
from plinius.trust.rules import KINDS, Rule, read_rule

MAX_POLICY_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class DatasetName:
    """A dataset that a job may read: its id (16 bytes) and its salt (32), as `inspect` shows."""

    id: bytes
    salt: bytes


@dataclass(frozen=True)
class JobPolicy:
    """What the owner says of one job.

    `digest` is the job's SHA-256 (32 bytes), `owner_key` the id of the key that its keys are
    derived from (8 bytes). `anchor_every` is the number of commits between two anchors.
    """

    digest: bytes
    owner_key: bytes
    datasets: tuple[DatasetName, ...]
    rules: tuple[Rule, ...]
    anchor_every: int
    lease_seconds: int
    allow_rollback: bool


@dataclass(frozen=True)
class Policy:
    """The whole file: its rules, its jobs by digest, and how long a challenge is valid."""

    rules: tuple[Rule, ...]
    jobs: dict[bytes, JobPolicy]
    nonce_seconds: int


def load_policy(path: Path) -> Policy:
    """Read a policy file. Raises StorageError, FormatError, which names what is wrong in it."""
    raw = read_file(path, MAX_POLICY_BYTES)
    try:
        return _policy(tomllib.loads(raw.decode("utf-8-sig")), path.parent)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"The policy {path} cannot be used: {error or 'it is nested too deep'}",
            "Correct it; docs/trust.md describes every key",
        ) from None


def _policy(found: dict[str, Any], folder: Path) -> Policy:
    top = _Table(found, "the policy")
    if top.take("version", int) != 1:
        raise ValueError("its version is not 1")
    nonce_seconds = top.number("nonce_seconds", 60, 1, 3600)
    rules: dict[str, Rule] = {}
    for table in top.tables("rule"):
        rule = _rule(table, folder)
        if rule.name in rules:
            raise ValueError(f"two rules have the name {rule.name}")
        rules[rule.name] = rule
    jobs: dict[bytes, JobPolicy] = {}
    for table in top.tables("job"):
        job = _job(table, rules)
        if job.digest in jobs:
            raise ValueError(f"job {job.digest.hex()} is there twice")
        jobs[job.digest] = job
    top.end()
    if not rules:
        raise ValueError("it has no [[rule]]")
    return Policy(tuple(rules.values()), jobs, nonce_seconds)


def _rule(table: "_Table", folder: Path) -> Rule:
    name, kind = table.take("name", str), table.take("kind", str)
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a rule is 1 to 64 letters, digits, dots, dashes")
    if kind not in KINDS:
        raise ValueError(f"rule {name}: {kind} is no kind of evidence: {', '.join(KINDS)}")
    collateral = None
    if kind in ("sgx", "tdx"):
        path = folder / table.take("collateral", str)
        try:
            collateral = read_file(path, MAX_COLLATERAL_BYTES).decode()
        except StorageError as error:
            raise ValueError(f"rule {name}: {error.what}") from None
    try:
        return read_rule(name, kind, table.rest(), collateral)
    except ValueError as error:
        raise ValueError(f"rule {name}: {error}") from None


def _job(table: "_Table", rules: dict[str, Rule]) -> JobPolicy:
    digest = _bytes(table.take("digest", str), 32, "the digest of a job")
    if not any(digest):
        raise ValueError("the digest of a job is all zeros, which means no job")
    names = table.take("accept", list)
    if not names or any(not isinstance(name, str) or name not in rules for name in names):
        raise ValueError(f"accept of job {digest.hex()} is not a list of names of rules")
    datasets = [
        DatasetName(
            _bytes(one.take("id", str), 16, "the id of a dataset"),
            _bytes(one.take("salt", str), 32, "the salt of a dataset"),
        )
        for one in table.tables("dataset", each_ends=True)
    ]
    job = JobPolicy(
        digest,
        _bytes(table.take("owner_key", str), 8, "owner_key"),
        tuple(datasets),
        tuple(rules[name] for name in names),
        table.number("anchor_every", 1, 1, 1_000_000),
        table.number("lease_seconds", 86_400, 1, 366 * 86_400),
        table.take("allow_rollback", bool, False),
    )
    table.end()
    return job


class _Table:
    """A TOML table whose keys are taken one by one; `end` refuses what was not taken."""

    def __init__(self, found: dict[str, Any], name: str) -> None:
        self._left, self._name = dict(found), name

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        if key not in self._left and default is not None:
            return default
        if key not in self._left:
            raise ValueError(f"{self._name} has no {key}")
        value = self._left.pop(key)
        if type(value) is not kind:
            raise ValueError(f"{key} of {self._name} must be of the type {kind.__name__}")
        return value

    def number(self, key: str, default: int, least: int, most: int) -> int:
        value: int = self.take(key, int, default)
        if not least <= value <= most:
            raise ValueError(f"{key} of {self._name} must be from {least} to {most}")
        return value

    def tables(self, key: str, each_ends: bool = False) -> "list[_Table]":
        found = self.take(key, list, [])
        if any(not isinstance(one, dict) for one in found):
            raise ValueError(f"{key} of {self._name} must be a list of tables")
        tables = [_Table(one, f"{key} {number}") for number, one in enumerate(found, start=1)]
        if each_ends and any(one.keys() != {"id", "salt"} for one in found):
            raise ValueError(f"{key} of {self._name} must have id and salt, and nothing else")
        return tables

    def rest(self) -> dict[str, object]:
        rest, self._left = self._left, {}
        return rest

    def end(self) -> None:
        for key in self._left:
            raise ValueError(f"{self._name} has the unknown key {key}")


def _bytes(text: str, length: int, what: str) -> bytes:
    if not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", text):
        raise ValueError(f"{what} is not {length} bytes in hex of lower case")
    return bytes.fromhex(text)
