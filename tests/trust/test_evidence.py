"""Envelopes: one encoding, bounded; simulated evidence; what the devices' files hold."""

import json
import struct
import uuid
from pathlib import Path

import pytest

from plinius.errors import AttestationError, KeyFileError
from plinius.trust.attesters import attest, read_certificate_table
from plinius.trust.evidence import MAX_EVIDENCE_BYTES, bind, decode_evidence
from plinius.trust.simulated import DevelopmentKey
from trust.attesting import JOB, NONCE, PUBLIC_KEY, SnpMachine, vector

SIMULATED = DevelopmentKey(b"\7" * 32).evidence(PUBLIC_KEY, NONCE, JOB)


def test_an_envelope_comes_back_as_it_was() -> None:
    """Encoded, decoded, encoded."""
    for evidence in (SIMULATED, SnpMachine().evidence()):
        assert decode_evidence(evidence.encode()) == evidence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "its version is not 2"),
        ({"version": True}, "its fields"),
        ({"kind": "sev"}, "its kind is unknown"),
        ({"kind": []}, "its kind is unknown"),
        ({"kind": "snp"}, "not the fields of snp"),
        ({"nonce": "00"}, "its nonce is not 32 bytes"),
        ({"nonce": "AA" * 32}, "its nonce is not at most 32 bytes"),
        ({"job": 5}, "its job is not 32 bytes"),
        ({"public_key": "0" * 2495}, "its public key is not 1248 bytes"),
        ({"evidence": []}, "not the fields of simulated"),
        ({"more": 1}, "its fields"),
        ({"evidence": {"measurement": "", "signer": "", "signature": ""}}, "its measurement"),
    ],
)
def test_an_envelope_of_another_form_is_refused(change: dict[str, object], said: str) -> None:
    """With what is wrong."""
    with pytest.raises(AttestationError, match=said):
        decode_evidence(json.dumps(json.loads(SIMULATED.encode()) | change).encode())


def test_an_envelope_has_one_encoding_and_a_bound() -> None:
    """Another order or a space is another text; 64 KiB are the most."""
    found = json.loads(SIMULATED.encode())
    for text in (
        json.dumps(found),
        json.dumps(dict(reversed(found.items())), separators=(",", ":")),
    ):
        with pytest.raises(AttestationError, match="not written as this format says"):
            decode_evidence(text.encode())
    with pytest.raises(AttestationError, match="more than 65536 bytes"):
        decode_evidence(b" " * (MAX_EVIDENCE_BYTES + 1))
    for text in (
        "",
        "[]",
        "[" * 60_000,
        '{"a":1,"a":1}',
        "\ud800".encode(errors="replace").decode(),
    ):
        with pytest.raises(AttestationError, match="no JSON object"):
            decode_evidence(text.encode())


def test_what_evidence_is_bound_to_depends_on_key_challenge_and_job() -> None:
    """Each of them, and nothing can be moved from one into another."""
    found = {
        bind(PUBLIC_KEY, NONCE, JOB),
        bind(PUBLIC_KEY[:-1] + b"\1", NONCE, JOB),
        bind(PUBLIC_KEY, JOB, NONCE),
        bind(PUBLIC_KEY, NONCE, NONCE),
    }
    assert len(found) == 4
    assert all(len(one) == 64 and not any(one[32:]) for one in found)
    with pytest.raises(ValueError, match="32 bytes"):
        bind(PUBLIC_KEY, NONCE[1:], JOB)


def test_a_development_key_is_saved_and_loaded(tmp_path: Path) -> None:
    """Mode 0600; another file is refused, also an owner's key; the secret is never shown."""
    key = DevelopmentKey.generate()
    key.save(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert DevelopmentKey.load(tmp_path / "key").public == key.public
    secret = (tmp_path / "key").read_text().split()[1]
    assert secret not in repr(key)
    (tmp_path / "other").write_text("plinius-owner-key-1 " + "0" * 64 + "\n")
    with pytest.raises(KeyFileError, match="holds no development key"):
        DevelopmentKey.load(tmp_path / "other")


def test_a_machine_without_a_device_says_so(tmp_path: Path) -> None:
    """One sentence, and what to do."""
    with pytest.raises(AttestationError, match="no device that gives evidence"):
        attest(PUBLIC_KEY, NONCE, JOB, tmp_path)


def test_gramine_is_given_the_binding_and_its_quote_is_taken(tmp_path: Path) -> None:
    """The real quote lies where Gramine would show it; what follows it in the buffer is dropped."""
    device = tmp_path / "dev" / "attestation"
    device.mkdir(parents=True)
    quote = vector("sgx/sgx_quote")
    (device / "quote").write_bytes(quote + bytes(100))
    evidence = attest(PUBLIC_KEY, NONCE, JOB, tmp_path)
    assert (evidence.kind, evidence.fields) == ("sgx", {"quote": quote})
    assert (device / "user_report_data").read_bytes() == bind(PUBLIC_KEY, NONCE, JOB)
    (device / "quote").write_bytes(b"no quote")
    with pytest.raises(AttestationError, match="no SGX quote of version 3"):
        attest(PUBLIC_KEY, NONCE, JOB, tmp_path)


def test_the_certificates_of_a_chip_are_read_from_the_host_table() -> None:
    """GUID, offset and length of each; a table without one of them is refused."""
    guids = (
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    )

    def table(count: int) -> bytes:
        head = b"".join(
            struct.pack("<16sII", uuid.UUID(guid).bytes, 96 + 4 * n, 4)
            for n, guid in enumerate(guids[:count])
        )
        return head.ljust(96, b"\0") + b"vcekask.ark."

    found = read_certificate_table(table(3))
    assert found == {"vcek": b"vcek", "ask": b"ask.", "ark": b"ark."}
    for short in (table(2), b"", b"\1" * 23):
        with pytest.raises(AttestationError, match="gives no certificates of this chip"):
            read_certificate_table(short)
