"""The verifier: what each kind must show, what a policy says of it, and 10^3 mutations refused."""

from pathlib import Path
from typing import Any

import pytest

from plinius.errors import FormatError, PliniusError
from plinius.trust.dcap import exact_quote, verify_quote
from plinius.trust.evidence import Evidence, decode_evidence
from plinius.trust.policy import Policy, load_policy
from plinius.trust.simulated import DevelopmentKey
from plinius.trust.snp import verify_snp
from plinius.trust.verify import Verdict, judge
from trust.attesting import JOB, NONCE, NOW, PUBLIC_KEY, SnpMachine, mutations, vector

SGX_TIME = 1750416971
SIGNER = DevelopmentKey(b"\7" * 32)
MACHINE = SnpMachine()


def simulated_rule(signer: str = SIGNER.public.hex(), more: str = "") -> str:
    return f'[[rule]]\nname = "test"\nkind = "simulated"\nsigner = ["{signer}"]\n{more}\n'


def policy(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text("version = 1\n" + text)
    return load_policy(path)


def verdict(folder: Path, text: str, evidence: Evidence, now: int = NOW) -> Verdict:
    return judge(evidence, policy(folder, text).rules, now)


def mutation_count(request: pytest.FixtureRequest) -> int:
    return 10_000 if request.config.getoption("--soak") else 1_000


def test_simulated_evidence_is_accepted_only_by_a_rule_that_names_its_signer(
    tmp_path: Path,
) -> None:
    """Not by a rule for real evidence, nor by one for another signer."""
    evidence = SIGNER.evidence(PUBLIC_KEY, NONCE, JOB)
    assert verdict(tmp_path, simulated_rule(), evidence).rule == "test"
    other = DevelopmentKey.generate().public.hex()
    refused = verdict(tmp_path, simulated_rule(other) + MACHINE.rule(), evidence)
    assert not refused.accepted
    assert refused.reasons["snp"] == ["it is for snp evidence, and this is simulated"]
    assert "which signer does not allow" in refused.reasons["test"][0]
    wrong = simulated_rule(more=f'measurement = ["{"00" * 32}"]')
    assert "measurement is" in verdict(tmp_path, wrong, evidence).reasons["test"][0]


def test_snp_evidence_is_accepted_by_a_rule_that_it_meets(tmp_path: Path) -> None:
    """Signature, chain to a pinned root, TCB, measurement."""
    accepted = verdict(tmp_path, MACHINE.rule(), MACHINE.evidence())
    assert accepted.accepted, accepted.reasons
    assert accepted.claims["snp"] == 8


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        ({"policy": 0xA0000}, "", "debug is True, which allow_debug"),
        ({"policy": 0x60000}, "", "migration is True, which allow_migration"),
        ({"policy": 0x30000}, "", "smt is True, which allow_smt"),
        ({"vmpl": 1}, "", "vmpl is 1, which vmpl"),
        ({"tcb": bytes([3, 0, 0, 0, 0, 0, 9, 115])}, "", "certificate is for another TCB"),
        ({"chip": b"\x09" * 64}, "", "certificate is for another chip"),
        ({"flags": 4}, "", "not signed by the key of a chip"),
        ({"version": 9}, "", "version 9 cannot be read"),
        ({}, f'platforms = ["{"01" * 64}"]', "which platforms does not allow"),
        ({}, f'host_data = ["{"01" * 32}"]', "which host_data does not allow"),
    ],
)
def test_snp_evidence_that_does_not_meet_a_rule_is_refused(
    tmp_path: Path, change: dict[str, Any], more: str, said: str
) -> None:
    """With the claim and the condition."""
    evidence = MACHINE.evidence(**change)
    (reason,) = verdict(tmp_path, MACHINE.rule(more), evidence).reasons["snp"]
    assert said in reason


def test_old_firmware_other_roots_and_expired_certificates_are_refused(tmp_path: Path) -> None:
    """Each by its reason."""
    old = SnpMachine(tcb=bytes([3, 0, 0, 0, 0, 0, 7, 115]))
    text = MACHINE.rule().replace(MACHINE.ark, old.ark)
    assert "snp is 7, which min_snp" in verdict(tmp_path, text, old.evidence()).reasons["snp"][0]
    other = verdict(tmp_path, MACHINE.rule(), SnpMachine().evidence())
    assert "which ark does not allow" in other.reasons["snp"][0]
    late = verdict(tmp_path, MACHINE.rule(), MACHINE.evidence(), NOW + 10 * 86_400)
    assert "not valid at this time" in late.reasons["snp"][0]


def test_evidence_of_another_key_challenge_or_job_is_refused(tmp_path: Path) -> None:
    """The envelope names one, and the device signed another."""
    honest = MACHINE.evidence()
    for other in (
        (PUBLIC_KEY[::-1], NONCE, JOB),
        (PUBLIC_KEY, JOB, JOB),
        (PUBLIC_KEY, NONCE, NONCE),
    ):
        (reason,) = verdict(
            tmp_path, MACHINE.rule(), Evidence("snp", *other, honest.fields)
        ).reasons["snp"]
        assert reason == "it is not bound to this key, challenge and job"


@pytest.mark.parametrize("kind", ["simulated", "snp"])
def test_every_mutation_of_an_envelope_is_refused(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Whatever byte of it is changed, and nothing but a refusal is raised."""
    rules = policy(tmp_path, simulated_rule() + MACHINE.rule("allow_smt = true")).rules
    one = SIGNER.evidence(PUBLIC_KEY, NONCE, JOB) if kind == "simulated" else MACHINE.evidence()
    assert judge(decode_evidence(one.encode()), rules, NOW).accepted
    for changed in mutations(one.encode(), mutation_count(request), seed=1):
        try:
            evidence = decode_evidence(changed)
        except PliniusError:
            continue
        assert not judge(evidence, rules, NOW).accepted, changed
    for name, value in one.fields.items():
        for changed in mutations(value, mutation_count(request) // len(one.fields), seed=2):
            fields = one.fields | {name: changed}
            assert not judge(Evidence(kind, PUBLIC_KEY, NONCE, JOB, fields), rules, NOW).accepted


def test_a_real_snp_report_holds() -> None:
    """Of a Milan chip, up to AMD's root; at a time when its certificates were valid."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    ask, ark = (
        x509.load_pem_x509_certificate(vector(f"snp/{name}.pem")).public_bytes(Encoding.DER)
        for name in ("ask", "ark")
    )
    report, vcek = vector("snp/report.bin"), vector("snp/vcek.der")
    values = verify_snp(report, vcek, ask, ark, SGX_TIME).values
    assert (values["snp"], values["microcode"], values["debug"]) == (8, 115, False)
    assert values["ark"] == "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"


@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_every_mutation_of_a_real_quote_is_refused(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Also what the quote library does not look at: PEM text, the root, bytes behind the quote."""
    quote = exact_quote(vector(f"{kind}/{kind}_quote"))
    collateral = vector(f"{kind}/{kind}_quote_collateral.json").decode()
    assert not verify_quote(kind, quote, collateral, SGX_TIME).values["debug"]
    changed = [quote + b"\0", quote[:-1], *mutations(quote, mutation_count(request), seed=3)]
    for one in changed:
        with pytest.raises(PliniusError):
            verify_quote(kind, one, collateral, SGX_TIME)


def test_a_real_quote_is_judged_by_its_tcb_and_its_time(tmp_path: Path) -> None:
    """Status and advisories are the policy's to accept; expired collateral is refused."""
    quote = exact_quote(vector("sgx/sgx_quote"))
    (tmp_path / "c.json").write_bytes(vector("sgx/sgx_quote_collateral.json"))
    measured = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
    rule = (
        f'[[rule]]\nname = "a"\nkind = "sgx"\ncollateral = "c.json"\nmrenclave = ["{measured}"]\n'
    )
    evidence = Evidence("sgx", PUBLIC_KEY, NONCE, JOB, {"quote": quote})
    unbound = "it is not bound to this key, challenge and job"
    tcb = 'tcb_status = ["ConfigurationAndSWHardeningNeeded"]\n'
    known = 'advisories = ["INTEL-SA-00289", "INTEL-SA-00615"]\n'
    strict = verdict(tmp_path, rule, evidence, SGX_TIME).reasons["a"]
    assert len(strict) == 3
    assert "tcb_status is ConfigurationAndSWHardeningNeeded" in strict[0]
    assert len(verdict(tmp_path, rule + tcb, evidence, SGX_TIME).reasons["a"]) == 2
    assert verdict(tmp_path, rule + tcb + known, evidence, SGX_TIME).reasons["a"] == [unbound]
    pinned = rule + tcb + known + f'platforms = ["{"00" * 16}"]\n'
    assert "which platforms" in verdict(tmp_path, pinned, evidence, SGX_TIME).reasons["a"][0]
    (late,) = verdict(tmp_path, rule + tcb + known, evidence, NOW).reasons["a"]
    assert "does not hold" in late


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"it has no \[\[rule\]\]"),
        ("more = 1\n" + simulated_rule(), "unknown key more"),
        (simulated_rule(more="debug = true"), "debug is no condition for simulated evidence"),
        (simulated_rule("AA" * 32), "signer must be a list of 32 bytes each"),
        ('[[rule]]\nname = "a"\nkind = "simulated"\n', "needs signer"),
        ('[[rule]]\nname = "a"\nkind = "sev"\n', "sev is no kind of evidence"),
        ('[[rule]]\nname = "a"\nkind = "sgx"\ncollateral = "none"\n', "Cannot read"),
        (simulated_rule() + simulated_rule(), "two rules have the name test"),
        (MACHINE.rule("allow_debug = 1"), "allow_debug must be true or false"),
        (MACHINE.rule().replace("min_snp = 8\n", ""), "needs ark, measurement"),
        (simulated_rule() + '[[job]]\ndigest = "00"\n', "the digest of a job is not 32 bytes"),
        (simulated_rule() + f'[[job]]\ndigest = "{"00" * 32}"\n', "means no job"),
        (simulated_rule() + f'[[job]]\ndigest = "{"01" * 32}"\naccept = ["x"]\n', "accept of job"),
    ],
)
def test_a_policy_is_read_strictly(tmp_path: Path, text: str, said: str) -> None:
    """Nothing is ignored, and a rule that would accept anything is refused."""
    with pytest.raises(FormatError, match=said):
        policy(tmp_path, text)
