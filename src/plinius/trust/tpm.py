"""TPM 2.0 quotes: read with tpm2-tools, verified against the AK that a policy names.

Layout: TCG, TPM 2.0 Library, Part 2: Structures (TPMS_ATTEST, TPML_PCR_SELECTION). The AK is a
restricted signing key of ECC P-256 with SHA-256, and `QUOTED` PCRs of the SHA-256 bank are quoted.
A TPM measures how a machine was started. It does not keep its owner out of its memory.
"""

import hashlib
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from plinius.errors import AttestationError, NotInstalledError
from plinius.trust.claims import Claim, Claims, does_not_hold
from plinius.trust.evidence import REPORT_DATA_BYTES
from plinius.trust.field_reader import FieldReader

QUOTED = range(16)
PCR_BYTES = 32
_GENERATED, _QUOTE, _SHA256 = 0xFF544347, 0x8018, 0x000B
_CLOCK = struct.Struct(">QIIBQ")  # clock, resets, restarts, safe, firmware version
_SECONDS = 30


def quote_by_tpm(handle: str, report_data: bytes) -> dict[str, bytes]:
    """A quote of this machine's TPM by the AK with a persistent handle, such as "0x81010002".

    Raises NotInstalledError, AttestationError.
    """
    tool, reader = shutil.which("tpm2_quote"), shutil.which("tpm2_readpublic")
    if tool is None or reader is None:
        raise NotInstalledError("A TPM is read with tpm2-tools", "Install them (tpm2-tools)")
    with tempfile.TemporaryDirectory() as name:
        paths = {part: Path(name) / part for part in ("quote", "signature", "pcrs", "ak")}
        numbers = ",".join(map(str, QUOTED))
        _run(
            tool, "-Q", "-c", handle, "-l", f"sha256:{numbers}", "-g", "sha256",
            "-q", report_data[: SHA256.digest_size].hex(), "-m", str(paths["quote"]),
            "-s", str(paths["signature"]), "-f", "plain", "-o", str(paths["pcrs"]), "-F", "values",
        )  # fmt: skip
        _run(reader, "-Q", "-c", handle, "-f", "der", "-o", str(paths["ak"]))
        return {part: path.read_bytes() for part, path in paths.items()}


def verify_tpm(quote: bytes, signature: bytes, ak: bytes, pcrs: bytes) -> Claims:
    """The claims of a quote; `ak` is a public key (DER), `pcrs` the values of `QUOTED` in order.

    The claim `ak` is the SHA-256 of that key, which the policy must name: nothing else says that
    it is one of a TPM. Raises AttestationError.
    """
    _check_signature(quote, signature, ak)
    reader = FieldReader(quote, "big")
    if reader.number(4) != _GENERATED or reader.number(2) != _QUOTE:
        raise does_not_hold("it is no quote made by a TPM")
    reader.sized()  # the name of the AK, which is known by its key
    bound = reader.sized()
    _CLOCK.unpack(reader.take(_CLOCK.size))
    if (reader.number(4), reader.number(2)) != (1, _SHA256):
        raise does_not_hold("it is not of the bank of SHA-256 alone")
    selected = int.from_bytes(reader.take(reader.number(1)), "little")
    if selected != sum(1 << number for number in QUOTED):
        raise does_not_hold("it is not of PCRs 0 to 15")
    if reader.sized() != hashlib.sha256(pcrs).digest() or len(pcrs) != PCR_BYTES * len(QUOTED):
        raise does_not_hold("its PCRs are not those that were quoted")
    if reader.left:
        raise does_not_hold("there is something behind the quote")
    values: dict[str, Claim] = {
        f"pcr{number}": pcrs[PCR_BYTES * number :][:PCR_BYTES].hex() for number in QUOTED
    }
    report_data = bound.ljust(REPORT_DATA_BYTES, b"\0") if len(bound) == 32 else bound
    return Claims(report_data, {"ak": hashlib.sha256(ak).hexdigest(), **values})


def _check_signature(quote: bytes, signature: bytes, ak: bytes) -> None:
    try:
        key = load_der_public_key(ak)
        if not isinstance(key, EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ValueError
        one_form = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == ak
        if not one_form or encode_dss_signature(*decode_dss_signature(signature)) != signature:
            raise ValueError
        key.verify(signature, quote, ECDSA(SHA256()))
    except (ValueError, InvalidSignature, TypeError, UnsupportedAlgorithm):
        raise does_not_hold("its signature is not that of its AK") from None


def _run(*command: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (no shell, and the words are ours)
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AttestationError(f"The TPM does not answer: {error}", "Check the TPM") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise AttestationError(
            f"The TPM refuses: {said[0][:200] if said else 'it says nothing'}",
            "Check the handle of the AK (--tpm), and that this process may use the TPM",
        )
