"""Intel SGX and TDX quotes (DCAP): verified by dcap_qvl, offline, against given collateral.

dcap_qvl checks the signatures, the certificates, the revocation lists and the identity of the
quoting enclave, and reports the state of the platform's TCB without judging it: the policy does.
It does not look at every byte of a quote (what follows it, the text around the certificates, the
root in the chain). `_check_form` does, so that there is one encoding of a quote.

Layout: Intel SGX DCAP Quoting Library API (quote version 3), Intel TDX DCAP (version 4).
"""

import json
import re
import struct
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from plinius.errors import NotInstalledError
from plinius.trust.certificates import check_chain, read_certificate
from plinius.trust.claims import Claim, Claims, does_not_hold
from plinius.trust.field_reader import FieldReader

MAX_COLLATERAL_BYTES = 256 << 10
_HEADER = 48
_BODY = {"sgx": 384, "tdx": 584}
_VERSION = {"sgx": 3, "tdx": 4}
_QE_REPORT, _QE_SIGNATURE, _SIGNATURE_AND_KEY = 384, 64, 128
_PCK_CHAIN, _QE_REPORT_DATA = 5, 6  # types of certification data
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n")


def verify_quote(
    kind: str, quote: bytes, collateral: str, now: int, root: bytes | None = None
) -> Claims:
    """The claims of a quote at the time `now` (seconds since 1970).

    `kind` is "sgx" or "tdx", `collateral` JSON as Intel's service gives it, `root` another root
    than Intel's (DER) for tests. Raises AttestationError, NotInstalledError.
    """
    _check_form(kind, quote)
    try:
        import dcap_qvl
    except ImportError:
        raise NotInstalledError(
            "SGX and TDX quotes need the package dcap-qvl", "Install plinius[trust]"
        ) from None
    try:
        verifier = dcap_qvl.QuoteVerifier(root)
        policy = dcap_qvl.QuotePolicy.claims_only(now)
        given = dcap_qvl.QuoteCollateralV3.from_json(collateral)
        found = json.loads(verifier.verify_with_policy(quote, given, now, policy).to_json())
    except ValueError as error:
        raise does_not_hold(" ".join(str(error).split())[:200].rstrip(".")) from None
    return _sgx(found) if kind == "sgx" else _tdx(found)


def exact_quote(quote: bytes) -> bytes:
    """A quote without what a device leaves behind it in its buffer. Raises AttestationError."""
    for kind, version in _VERSION.items():
        if quote[:2] == version.to_bytes(2, "little"):
            end = _HEADER + _BODY[kind]
            if len(quote) < end + 4:
                break
            start, length = end + 4, int.from_bytes(quote[end : end + 4], "little")
            inner = FieldReader(quote[start : start + length], "little")
            _read_signature(kind, inner)
            used = length - inner.left
            return quote[:end] + struct.pack("<I", used) + quote[start : start + used]
    raise does_not_hold("this is no SGX quote of version 3 or TDX quote of version 4")


def _sgx(found: dict[str, Any]) -> Claims:
    report = found["report"].get("SgxEnclave")
    if report is None:
        raise does_not_hold("it is no quote of an SGX enclave")
    values: dict[str, Claim] = {
        "mrenclave": report["mr_enclave"],
        "mrsigner": report["mr_signer"],
        "product": report["isv_prod_id"],
        "svn": report["isv_svn"],
        "debug": bool(bytes.fromhex(report["attributes"])[0] & 2),
    }
    return Claims(bytes.fromhex(report["report_data"]), {**values, **_platform(found)})


def _tdx(found: dict[str, Any]) -> Claims:
    report = found["report"].get("TD10")
    if report is None:
        raise does_not_hold("it is no quote of a TD of version 1.0")
    values: dict[str, Claim] = {
        "mrtd": report["mr_td"],
        **{f"rtmr{n}": report[f"rt_mr{n}"] for n in range(4)},
        "mrconfigid": report["mr_config_id"],
        "mrowner": report["mr_owner"],
        "mrseam": report["mr_seam"],
        "debug": bool(bytes.fromhex(report["td_attributes"])[0]),  # TUD: any bit is not trusted
    }
    if any(bytes.fromhex(report["mr_signer_seam"])):
        raise does_not_hold("the TDX module is not Intel's")
    return Claims(bytes.fromhex(report["report_data"]), {**values, **_platform(found)})


def _platform(found: dict[str, Any]) -> dict[str, Claim]:
    tcb, pck = found["tcb"], found["platform"]["pck"]
    return {
        "tcb_status": tcb["status"],
        "advisories": tuple(sorted(tcb["advisory_ids"])),
        "tcb_evaluation": tcb["eval_data_number"],
        "platform": bytes(pck["ppid"]).hex(),
        "fmspc": bytes(pck["fmspc"]).hex(),
    }


def _check_form(kind: str, quote: bytes) -> None:
    """Refuse a quote that is not the one encoding of what it says."""
    reader = FieldReader(quote, "little")
    if reader.number(2) != _VERSION[kind]:
        raise does_not_hold(f"this is no {kind.upper()} quote of version {_VERSION[kind]}")
    reader.take(_HEADER - 2 + _BODY[kind])
    length = reader.number(4)
    if length != reader.left:
        raise does_not_hold("the quote has another length than it says")
    chain = _read_signature(kind, reader)
    if reader.left:
        raise does_not_hold("there is something behind the quote")
    _check_chain(chain)


def _read_signature(kind: str, reader: FieldReader) -> bytes:
    """Read the signature data of a quote; returns the PCK chain in it."""
    reader.take(_SIGNATURE_AND_KEY)
    if kind == "tdx" and (reader.number(2), reader.number(4)) != (_QE_REPORT_DATA, reader.left):
        raise does_not_hold("the quote has no report of a quoting enclave")
    reader.take(_QE_REPORT + _QE_SIGNATURE)
    reader.take(reader.number(2))
    if reader.number(2) != _PCK_CHAIN:
        raise does_not_hold("the quote carries no certificates of its platform")
    return reader.take(reader.number(4))


def _check_chain(chain: bytes) -> None:
    """Refuse a PCK chain that is not leaf, issuer, root in PEM, each signed by the next."""
    text = chain.removesuffix(b"\0").decode("latin-1")
    blocks = _PEM.findall(text if text.endswith("\n") else text + "\n")
    if len(blocks) != 3 or "".join(blocks).rstrip("\n") != text.rstrip("\n"):
        raise does_not_hold("its certificates are not three in PEM")
    certificates = [read_certificate(block.encode(), Encoding.PEM) for block in blocks]
    check_chain(certificates)
