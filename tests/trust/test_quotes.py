"""SGX and TDX evidence of a root of our own: binding, debug, TCB, revocation, mutations."""

import dataclasses
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from plinius.errors import PliniusError
from plinius.trust.evidence import Evidence, decode_evidence
from plinius.trust.policy import load_policy
from plinius.trust.rules import Rule
from plinius.trust.verify import Verdict, judge
from trust.attesting import JOB, NONCE, NOW, PUBLIC_KEY, mutations
from trust.intel import PPID, IntelMachine

MACHINE = IntelMachine()
KINDS = pytest.mark.parametrize("kind", ["sgx", "tdx"])
AA32, AA48 = "aa" * 32, "aa" * 48
NEEDED = {
    "sgx": f'mrsigner = ["{"bb" * 32}"]\nproduct = 7\nmin_svn = 3\n',
    "tdx": f'mrtd = ["{AA48}"]\nrtmr1 = ["{AA48}"]\nrtmr2 = ["{AA48}"]\n',
}


def rule(
    folder: Path,
    kind: str,
    more: str = "",
    collateral: str | None = None,
    machine: IntelMachine | None = MACHINE,
    needed: str | None = None,
) -> Rule:
    """A rule for one kind, which trusts a machine's own root (None: Intel's)."""
    (folder / "c.json").write_text(collateral or MACHINE.collateral(kind))
    head = f'version = 1\n[[rule]]\nname = "r"\nkind = "{kind}"\ncollateral = "c.json"\n'
    (folder / "p.toml").write_text(head + (needed or NEEDED[kind]) + more)
    (found,) = load_policy(folder / "p.toml").rules
    root = machine.root.certificate.public_bytes(Encoding.DER) if machine else None
    return dataclasses.replace(found, root=root)


def verdict(evidence: Evidence, one: Rule, now: int = NOW) -> Verdict:
    return judge(evidence, [one], now)


@KINDS
def test_evidence_that_meets_a_rule_is_accepted(tmp_path: Path, kind: str) -> None:
    """By signer, or by measurement, and by platform."""
    evidence = MACHINE.evidence(kind)
    found = verdict(evidence, rule(tmp_path, kind, f'platforms = ["{PPID.hex()}"]'))
    assert found.accepted, found.reasons
    if kind == "sgx":
        exact = rule(tmp_path, kind, needed=f'mrenclave = ["{AA32}"]\n')
        assert verdict(evidence, exact).accepted


@KINDS
def test_evidence_for_another_key_challenge_or_job_is_refused(tmp_path: Path, kind: str) -> None:
    """What the device signed does not fit the envelope."""
    fields = MACHINE.evidence(kind).fields
    one = rule(tmp_path, kind)
    for other in (
        (PUBLIC_KEY[::-1], NONCE, JOB),
        (PUBLIC_KEY, JOB, JOB),
        (PUBLIC_KEY, NONCE, NONCE),
    ):
        (reason,) = verdict(Evidence(kind, *other, fields), one).reasons["r"]
        assert reason == "it is not bound to this key, challenge and job"


@KINDS
def test_debug_is_refused_by_default(tmp_path: Path, kind: str) -> None:
    """Its memory can be read; `allow_debug` accepts what the quote library lets through."""
    evidence = MACHINE.evidence(kind, debug=True)
    refused = verdict(evidence, rule(tmp_path, kind))
    assert not refused.accepted
    assert "debug" in refused.reasons["r"][0].lower()


@KINDS
@pytest.mark.parametrize("status", ["OutOfDate", "ConfigurationNeeded", "Revoked"])
def test_the_state_of_the_tcb_is_judged_by_the_policy(
    tmp_path: Path, kind: str, status: str
) -> None:
    """Only `UpToDate` by default; another one if it is named; never a revoked one."""
    collateral = MACHINE.collateral(kind, status)
    evidence = MACHINE.evidence(kind)
    assert not verdict(evidence, rule(tmp_path, kind, collateral=collateral)).accepted
    more = f'tcb_status = ["UpToDate", "{status}"]\n'
    if status == "Revoked":
        with pytest.raises(PliniusError, match="tcb_status must be a list of"):
            rule(tmp_path, kind, more, collateral)
    else:
        assert verdict(evidence, rule(tmp_path, kind, more, collateral)).accepted


@KINDS
def test_a_revoked_platform_and_old_or_foreign_collateral_are_refused(
    tmp_path: Path, kind: str
) -> None:
    """Revocation list, dates, another machine's signatures, and Intel's own root."""
    evidence = MACHINE.evidence(kind)
    other = IntelMachine()
    for one in (
        rule(tmp_path, kind, collateral=MACHINE.collateral(kind, revoked=True)),
        rule(tmp_path, kind, collateral=MACHINE.collateral(kind, age=3)),
        rule(tmp_path, kind, collateral=other.collateral(kind)),
        rule(tmp_path, kind, collateral=other.collateral(kind), machine=other),
        rule(tmp_path, kind, machine=None),
        rule(tmp_path, kind, collateral="{}"),
        rule(tmp_path, kind, f'platforms = ["{"00" * 16}"]'),
        rule(tmp_path, kind, "min_tcb_evaluation = 18"),
    ):
        assert not verdict(evidence, one).accepted
    assert not verdict(evidence, rule(tmp_path, kind), NOW + 10 * 86_400).accepted


@KINDS
def test_another_measurement_is_refused(tmp_path: Path, kind: str) -> None:
    """The reason names the claim and the condition."""
    changed = NEEDED[kind].replace("aa" * 48, "ab" * 48, 1).replace("min_svn = 3", "min_svn = 4")
    (reason,) = verdict(MACHINE.evidence(kind), rule(tmp_path, kind, needed=changed)).reasons["r"]
    assert reason.startswith("svn is 3" if kind == "sgx" else f"mrtd is {AA48}")


@KINDS
def test_every_mutation_of_an_envelope_is_refused(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Of the envelope's text, and of the quote in it."""
    count = 10_000 if request.config.getoption("--soak") else 1_000
    one, evidence = rule(tmp_path, kind), MACHINE.evidence(kind)
    assert verdict(decode_evidence(evidence.encode()), one).accepted
    for changed in mutations(evidence.encode(), count // 2, seed=8):
        try:
            found = decode_evidence(changed)
        except PliniusError:
            continue
        assert not verdict(found, one).accepted
    for changed in mutations(evidence.fields["quote"], count // 2, seed=9):
        assert not verdict(Evidence(kind, PUBLIC_KEY, NONCE, JOB, {"quote": changed}), one).accepted
