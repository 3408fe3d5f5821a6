"""TPM quotes of a real software TPM (swtpm), which the test starts."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.world import call
from plinius.errors import AttestationError
from plinius.trust.evidence import Evidence, bind, decode_evidence
from plinius.trust.policy import load_policy
from plinius.trust.tpm import quote_by_tpm
from plinius.trust.verify import Verdict, judge
from trust.attesting import JOB, NONCE, NOW, PUBLIC_KEY, mutations
from trust.software_tpm import software_tpm

HANDLE = "0x81010002"
TOOLS = ("swtpm", "tpm2_quote", "tpm2_createprimary", "tpm2_evictcontrol")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the public AK of a running TPM, which the tools find by the environment."""
    folder = tmp_path_factory.mktemp("tpm")
    with software_tpm(folder):
        for _ in range(100):
            if subprocess.run(["tpm2_flushcontext", "-t"], capture_output=True).returncode == 0:
                break
            time.sleep(0.05)
        provision(folder)
        yield folder


def provision(folder: Path) -> None:
    """Make a restricted signing key, and keep it in the TPM."""
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    for line in (
        "tpm2_createprimary -Q -C o -G ecc -c p.ctx",
        f"tpm2_create -Q -C p.ctx -G ecc:ecdsa-sha256:null -a {attributes} -u ak.pub -r ak.priv",
        "tpm2_load -Q -C p.ctx -u ak.pub -r ak.priv -c ak.ctx",
        f"tpm2_evictcontrol -Q -C o -c ak.ctx {HANDLE}",
    ):
        subprocess.run(line.split(), cwd=folder, check=True, capture_output=True)
        subprocess.run(["tpm2_flushcontext", "-t"], check=True)


def evidence() -> Evidence:
    return Evidence(
        "tpm", PUBLIC_KEY, NONCE, JOB, quote_by_tpm(HANDLE, bind(PUBLIC_KEY, NONCE, JOB))
    )


def rule(one: Evidence, **more: str) -> str:
    """A rule that accepts the AK and PCR 4 of some evidence."""
    import hashlib

    pcrs = {"pcr4": one.fields["pcrs"][128:160].hex(), **more}
    lines = "".join(f'{name} = ["{value}"]\n' for name, value in pcrs.items())
    ak = hashlib.sha256(one.fields["ak"]).hexdigest()
    return f'version = 1\n[[rule]]\nname = "t"\nkind = "tpm"\nak = ["{ak}"]\n{lines}'


def verdict(folder: Path, one: Evidence, text: str) -> Verdict:
    (folder / "policy.toml").write_text(text)
    return judge(one, load_policy(folder / "policy.toml").rules, NOW)


def test_a_quote_is_accepted_by_its_ak_and_pcrs(tpm: Path, tmp_path: Path) -> None:
    """And refused for another AK, another PCR, and after the machine went on measuring."""
    one = evidence()
    text = rule(one, pcr11=bytes(32).hex())
    accepted = verdict(tmp_path, decode_evidence(one.encode()), text)
    assert accepted.accepted, accepted.reasons
    assert "pcr11 is" in verdict(tmp_path, one, rule(one, pcr11="01" * 32)).reasons["t"][0]
    other = text.replace('ak = ["', 'ak = ["00').replace('"]\npcr4', '"]\npcr4')
    other = other.replace('["00' + text.split('ak = ["')[1][:64], f'["{"00" * 32}')
    assert "ak is" in verdict(tmp_path, one, other).reasons["t"][0]
    subprocess.run(["tpm2_pcrextend", f"11:sha256={'05' * 32}"], check=True)
    assert "pcr11 is" in verdict(tmp_path, evidence(), text).reasons["t"][0]


def test_a_quote_for_another_challenge_is_refused(tpm: Path, tmp_path: Path) -> None:
    """The TPM signs what it was asked for."""
    one = evidence()
    moved = Evidence("tpm", PUBLIC_KEY, JOB, JOB, one.fields)
    (reason,) = verdict(tmp_path, moved, rule(one)).reasons["t"]
    assert reason == "it is not bound to this key, challenge and job"


def test_every_mutation_of_a_quote_is_refused(
    tpm: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Quote, signature, key and PCRs."""
    count = 2_500 if request.config.getoption("--soak") else 250
    one = evidence()
    assert verdict(tmp_path, one, rule(one)).accepted
    rules = load_policy(tmp_path / "policy.toml").rules
    for name, value in one.fields.items():
        for changed in mutations(value, count, seed=4):
            fields = one.fields | {name: changed}
            assert not judge(Evidence("tpm", PUBLIC_KEY, NONCE, JOB, fields), rules, NOW).accepted


def test_attest_prints_a_quote_and_refuses_a_wrong_handle(tpm: Path, tmp_path: Path) -> None:
    """One sentence for a handle that has no key, and for an AK that is none."""
    out = tmp_path / "evidence.json"
    assert call("attest", "--tpm", HANDLE, "-o", out, "--json").json["kind"] == "tpm"
    (tmp_path / "p.toml").write_text(rule(decode_evidence(out.read_bytes())))
    assert call("attest", "verify", out, "--policy", tmp_path / "p.toml").code == 0
    with pytest.raises(AttestationError, match="The TPM refuses"):
        quote_by_tpm("0x81010009", bytes(64))
    assert os.environ["TPM2TOOLS_TCTI"]
