"""The verifier: judges evidence by the rules of a policy, and says why."""

from collections.abc import Sequence
from dataclasses import dataclass

from plinius.errors import AttestationError
from plinius.jsonvalue import Json
from plinius.trust.claims import Claim, Claims
from plinius.trust.dcap import verify_quote
from plinius.trust.evidence import Evidence
from plinius.trust.rules import Rule
from plinius.trust.simulated import verify_simulated
from plinius.trust.snp import verify_snp
from plinius.trust.tpm import verify_tpm


@dataclass(frozen=True)
class Verdict:
    """Whether evidence is accepted: by which rule, or why by none.

    `reasons` has the objections of each rule that was asked. `claims` are those of the evidence
    if its signatures hold under at least one rule.
    """

    rule: str | None
    reasons: dict[str, list[str]]
    claims: dict[str, Claim]

    @property
    def accepted(self) -> bool:
        """Whether a rule accepts the evidence."""
        return self.rule is not None

    def as_json(self) -> dict[str, Json]:
        """The verdict as JSON, for a person and for the audit log."""
        claims: dict[str, Json] = {
            name: list(claim) if isinstance(claim, tuple) else claim
            for name, claim in self.claims.items()
        }
        reasons: dict[str, Json] = {name: list(texts) for name, texts in self.reasons.items()}
        return {
            "accepted": self.accepted, "rule": self.rule, "reasons": reasons, "claims": claims,
        }  # fmt: skip


def judge(evidence: Evidence, rules: Sequence[Rule], now: int) -> Verdict:
    """Judge evidence at the time `now` (seconds since 1970) by rules of a policy.

    The first rule that has no objection accepts it. Whether nonce, key and job are those that
    were asked for is the caller's to check; that the evidence is bound to them is checked here.
    """
    reasons: dict[str, list[str]] = {}
    claims: dict[str, Claim] = {}
    for rule in rules:
        if rule.kind != evidence.kind:
            reasons[rule.name] = [f"it is for {rule.kind} evidence, and this is {evidence.kind}"]
            continue
        try:
            found = _verify(evidence, rule, now)
        except AttestationError as error:
            reasons[rule.name] = [error.what]
            continue
        claims = found.values
        objections = rule.objections(found.values)
        if found.report_data != evidence.report_data:
            objections.append("it is not bound to this key, challenge and job")
        if not objections:
            return Verdict(rule.name, {}, claims)
        reasons[rule.name] = objections
    return Verdict(None, reasons, claims)


def _verify(evidence: Evidence, rule: Rule, now: int) -> Claims:
    fields = evidence.fields
    if evidence.kind == "snp":
        return verify_snp(fields["report"], fields["vcek"], fields["ask"], fields["ark"], now)
    if evidence.kind == "tpm":
        return verify_tpm(fields["quote"], fields["signature"], fields["ak"], fields["pcrs"])
    if evidence.kind == "simulated":
        return verify_simulated(evidence)
    assert rule.collateral is not None
    return verify_quote(evidence.kind, fields["quote"], rule.collateral, now, rule.root)
