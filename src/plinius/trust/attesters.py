"""The attesters: how this machine gives evidence of the process that asks for it.

Read are Gramine's /dev/attestation (SGX), and Linux's configfs-tsm (TDX and SEV-SNP guests,
Documentation/ABI/testing/configfs-tsm of the kernel).
"""

import os
import struct
import uuid
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from plinius import sealing
from plinius.errors import AttestationError
from plinius.trust.dcap import exact_quote
from plinius.trust.evidence import FIELDS, Evidence, bind

_GRAMINE = Path("dev/attestation")
_TSM = Path("sys/kernel/config/tsm/report")
_MAX_BLOB = 64 << 10
_CERTIFICATES = {
    "vcek": "63da758d-e664-4564-adc5-f4b93be8accd",
    "ask": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "ark": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
}
"""The names of SNP certificates in a host's table (GHCB specification, SNP extended request)."""


def attest(public_key: bytes, nonce: bytes, job: bytes, root: Path = Path("/")) -> Evidence:
    """Evidence of this process for a key, a challenge and a job.

    `root` is where the devices are looked for. Raises AttestationError if there is no device, or
    it does not answer.
    """
    report_data = bind(public_key, nonce, job)
    try:
        if (root / _GRAMINE / "quote").exists():
            kind, fields = "sgx", _gramine(root / _GRAMINE, report_data)
        elif (root / _TSM).is_dir():
            kind, fields = _tsm(root / _TSM, report_data)
        else:
            raise AttestationError(
                "This machine has no device that gives evidence (Gramine's /dev/attestation, or "
                "configfs-tsm of a TDX or SEV-SNP guest)",
                "Run it in a trusted environment, or give --simulated with a development key, "
                "which proves nothing",
            )
    except OSError as error:
        raise AttestationError(
            f"The attestation device does not answer: {error.strerror or error}",
            "Check that this process may use it, and that the machine is set up for attestation",
        ) from None
    return Evidence(kind, public_key, nonce, job, fields)


def _gramine(device: Path, report_data: bytes) -> dict[str, bytes]:
    (device / "user_report_data").write_bytes(report_data)
    return {"quote": exact_quote(_read(device / "quote"))}


def _tsm(folder: Path, report_data: bytes) -> tuple[str, dict[str, bytes]]:
    entry = folder / f"plinius-{sealing.fresh(8).hex()}"
    entry.mkdir()
    try:
        (entry / "inblob").write_bytes(report_data)
        blob, provider = _read(entry / "outblob"), (entry / "provider").read_text().strip()
        if (entry / "generation").read_text().strip() != "1":
            raise AttestationError("Another process changed this request for evidence", "Try again")
        if provider == "tdx_guest":
            return "tdx", {"quote": exact_quote(blob)}
        if provider == "sev_guest":
            return "snp", {"report": blob[: FIELDS["snp"]["report"]], **_table(entry / "auxblob")}
    finally:
        os.rmdir(entry)
    raise AttestationError(
        f"The provider {provider[:40]} of configfs-tsm is unknown", "Use a TDX or SEV-SNP guest"
    )


def _table(path: Path) -> dict[str, bytes]:
    """The certificates of an SNP chip, which the host gives with the report."""
    return read_certificate_table(_read(path) if path.exists() else b"")


def read_certificate_table(table: bytes) -> dict[str, bytes]:
    """VCEK, ASK and ARK in DER from a host's table. Raises AttestationError if one is missing."""
    found = {}
    for at in range(0, len(table) - 23, 24):
        name, offset, length = struct.unpack_from("<16sII", table, at)
        if not any(name):
            break
        found[str(uuid.UUID(bytes=name))] = _as_der(table[offset : offset + length])
    missing = [name for name, guid in _CERTIFICATES.items() if not found.get(guid)]
    if missing:
        raise AttestationError(
            f"The host gives no certificates of this chip ({', '.join(missing)})",
            "Have the host fetch them from AMD's key service (sevctl, snphost import)",
        )
    return {name: found[guid] for name, guid in _CERTIFICATES.items()}


def _as_der(data: bytes) -> bytes:
    if not data.startswith(b"-----"):
        return data
    try:
        return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
    except ValueError:
        return b""


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_BLOB)
