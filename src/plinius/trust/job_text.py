"""A job as TOML, and back.

Every key must be there, none other may be, and every value is bounded.
"""

import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from plinius.errors import FormatError
from plinius.trust.job import (
    ANCHORS,
    MAX_COUNT,
    MAX_DIGITS,
    MAX_ITEMS,
    MAX_LARGEST,
    MAX_RECIPIENTS,
    METRICS,
    OUTPUTS,
    PRECISIONS,
    ROLES,
    Anchor,
    Grant,
    Job,
    Metrics,
    Outputs,
    Recipe,
)
from plinius.trust.recipients import Recipient

FORMAT = "plinius-job-2"
ASK_AGAIN = "Ask the owner for the job again, as plinius job create wrote it"


def job_text(job: Job) -> str:
    """The text of a job, without its signature."""

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
        f"recipients = {texts(o.recipients)}",
        f"every = {o.every}",
        "\n[anchor]",
        f'kind = "{job.anchor.kind}"',
        f"every = {job.anchor.every}",
        *(f'\n[[datasets]]\nid = "{it.id}"\nrole = "{it.role}"' for it in job.datasets),
    ]
    return "\n".join(lines) + "\n\n"


# Reading: each check raises _BadKeyError with the key; parse_job turns that into one sentence.


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


def _several(item: Check, least: int = 0, most: int = MAX_ITEMS) -> Check:
    def check(value: object, key: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _BadKeyError(f"{key} needs a list of {least} to {most} values")
        found = tuple(item(it, key) for it in value)
        if len(set(found)) != len(found):
            raise _BadKeyError(f"{key} holds a value twice")
        return found

    return check


def _recipient(value: object, key: str) -> str:
    try:
        return Recipient.of_text(str(value)).text
    except ValueError:
        raise _BadKeyError(f"{key} needs public halves of recipients in base64") from None


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
        recipients=_several(_recipient, most=MAX_RECIPIENTS),
        every=_COUNT,
    ),
    anchor=_table(Anchor, kind=_one_of(ANCHORS), every=_COUNT),
    datasets=_several(
        _table(Grant, id=_text_as("[0-9a-f]{32}", "an id of 32 hex digits"), role=_one_of(ROLES)),
        least=1,
    ),
)


def parse_job(text: bytes, name: str) -> Job:
    """The job that a text says; `name` is used in messages. Raises FormatError."""
    try:
        job = cast(Job, _JOB(tomllib.loads(text.decode()), ""))
        if sum(grant.role == "train" for grant in job.datasets) != 1:
            raise _BadKeyError("datasets needs exactly one for training")
        return job
    except (ValueError, RecursionError):
        raise FormatError(f"{name} is not TOML in UTF-8", ASK_AGAIN) from None
    except _BadKeyError as bad:
        raise FormatError(f"{name}: {bad}", ASK_AGAIN) from None
