"""The rules of a policy: which claims each kind of evidence must make. One table says all.

A condition that a rule leaves out has its default; one without a default is not asked for, unless
`Kind.needed` asks for it. An unknown condition is refused, never ignored.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from plinius.trust.claims import Claim

_TCB_WORDS = (
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded",
    "OutOfDate", "OutOfDateConfigurationNeeded",
)  # fmt: skip
"""What a rule may accept of a platform. "Revoked" is never accepted."""


@dataclass(frozen=True)
class Condition:
    """How a condition is read, and when a claim meets it.

    `read` returns the value of the condition, or raises ValueError, which says what it must be.
    """

    claim: str
    read: Callable[[object], Any]
    meets: Callable[[Claim, Any], bool]
    default: Any = None


@dataclass(frozen=True)
class Kind:
    """The conditions of one kind of evidence; a rule must have one of the sets in `needed`."""

    conditions: dict[str, Condition]
    needed: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Rule:
    """One rule of a policy: a name, a kind, and the conditions that hold, by name.

    `collateral` is for quotes. A `root` other than Intel's (DER) is for tests; no file sets it.
    """

    name: str
    kind: str
    conditions: dict[str, Any] = field(repr=False)
    collateral: str | None = None
    root: bytes | None = field(default=None, repr=False)

    def objections(self, claims: dict[str, Claim]) -> list[str]:
        """Why claims do not meet this rule, one text for each condition; empty if they do."""
        found = []
        for name, wanted in self.conditions.items():
            condition = KINDS[self.kind].conditions[name]
            claim = claims[condition.claim]
            if not condition.meets(claim, wanted):
                found.append(f"{condition.claim} is {_show(claim)}, which {name} does not allow")
        return found


def read_rule(name: str, kind: str, given: dict[str, object], collateral: str | None) -> Rule:
    """A rule from the conditions in a policy. Raises ValueError, which says what is wrong."""
    table = KINDS[kind]
    for word in given:
        if word not in table.conditions:
            raise ValueError(f"{word} is no condition for {kind} evidence")
    if not any(all(word in given for word in words) for words in table.needed):
        needed = " or ".join(", ".join(words) for words in table.needed)
        raise ValueError(f"a rule for {kind} evidence needs {needed}")
    conditions = {}
    for word, condition in table.conditions.items():
        if word in given:
            try:
                conditions[word] = condition.read(given[word])
            except ValueError as error:
                raise ValueError(f"{word} must be {error}") from None
        elif condition.default is not None:
            conditions[word] = condition.default
    return Rule(name, kind, conditions, collateral)


def _one_of(length: int) -> Callable[[object], tuple[str, ...]]:
    pattern = re.compile(f"[0-9a-f]{{{2 * length}}}")

    def read(value: object) -> tuple[str, ...]:
        found = value if isinstance(value, list) else []
        if not found or not all(isinstance(v, str) and pattern.fullmatch(v) for v in found):
            raise ValueError(f"a list of {length} bytes each, in hex of lower case")
        return tuple(found)

    return read


def _words(allowed: tuple[str, ...] | re.Pattern[str]) -> Callable[[object], tuple[str, ...]]:
    def good(word: object) -> bool:
        if isinstance(allowed, re.Pattern):
            return isinstance(word, str) and allowed.fullmatch(word) is not None
        return word in allowed

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(map(good, value)):
            what = allowed.pattern if isinstance(allowed, re.Pattern) else ", ".join(allowed)
            raise ValueError(f"a list of: {what}")
        return tuple(value)

    return read


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("a whole number from 0")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _is_in(claim: Claim, wanted: tuple[str, ...]) -> bool:
    return claim in wanted


def _all_in(claim: Claim, wanted: tuple[str, ...]) -> bool:
    return isinstance(claim, tuple) and set(claim) <= set(wanted)


def _equals(claim: Claim, wanted: int) -> bool:
    return claim == wanted


def _at_least(claim: Claim, wanted: int) -> bool:
    return isinstance(claim, int) and claim >= wanted


def _allowed(claim: Claim, wanted: bool) -> bool:
    return wanted or claim is False


def _bytes(claim: str, length: int) -> Condition:
    return Condition(claim, _one_of(length), _is_in)


def _least(claim: str) -> Condition:
    return Condition(claim, _number, _at_least)


def _allow(claim: str) -> Condition:
    return Condition(claim, _flag, _allowed, default=False)


def _show(claim: Claim) -> str:
    return ", ".join(claim) if isinstance(claim, tuple) else str(claim)


_INTEL = {
    "allow_debug": _allow("debug"),
    "tcb_status": Condition("tcb_status", _words(_TCB_WORDS), _is_in, default=("UpToDate",)),
    "advisories": Condition("advisories", _words(re.compile(r"INTEL-SA-\d{5}")), _all_in, ()),
    "min_tcb_evaluation": _least("tcb_evaluation"),
    "platforms": _bytes("platform", 16),
    "fmspc": _bytes("fmspc", 6),
}

KINDS: dict[str, Kind] = {
    "sgx": Kind(
        {
            "mrenclave": _bytes("mrenclave", 32),
            "mrsigner": _bytes("mrsigner", 32),
            "product": Condition("product", _number, _equals),
            "min_svn": _least("svn"),
            **_INTEL,
        },
        (("mrenclave",), ("mrsigner", "product", "min_svn")),
    ),
    "tdx": Kind(
        {
            "mrtd": _bytes("mrtd", 48),
            **{f"rtmr{n}": _bytes(f"rtmr{n}", 48) for n in range(4)},
            "mrconfigid": _bytes("mrconfigid", 48),
            "mrowner": _bytes("mrowner", 48),
            "mrseam": _bytes("mrseam", 48),
            **_INTEL,
        },
        (("mrtd", "rtmr1", "rtmr2"),),  # the MRTD alone lets the firmware start any kernel
    ),
    "snp": Kind(
        {
            "measurement": _bytes("measurement", 48),
            "ark": _bytes("ark", 32),
            "host_data": _bytes("host_data", 32),
            "id_key_digest": _bytes("id_key_digest", 48),
            "vmpl": Condition("vmpl", _number, _equals, default=0),
            "min_guest_svn": _least("guest_svn"),
            "min_boot_loader": _least("boot_loader"),
            "min_tee": _least("tee"),
            "min_snp": _least("snp"),
            "min_microcode": _least("microcode"),
            "allow_debug": _allow("debug"),
            "allow_migration": _allow("migration"),
            "allow_smt": _allow("smt"),
            "platforms": _bytes("platform", 64),
        },
        (("ark", "measurement", "min_boot_loader", "min_tee", "min_snp", "min_microcode"),),
    ),
    "tpm": Kind(
        {"ak": _bytes("ak", 32), **{f"pcr{n}": _bytes(f"pcr{n}", 32) for n in range(16)}},
        (("ak", "pcr4"), ("ak", "pcr11")),  # what was started: the boot loader, or a unified image
    ),
    "simulated": Kind(
        {"signer": _bytes("signer", 32), "measurement": _bytes("measurement", 32)},
        (("signer",),),
    ),
}
