"""AMD SEV-SNP attestation reports: signature, certificates up to AMD's root key, claims.

Layout: AMD 56860, SEV Secure Nested Paging Firmware ABI, ATTESTATION_REPORT; certificates: AMD
57230, VCEK Certificate and KDS Interface. Milan and Genoa are read; Turin orders its TCB
otherwise, and is refused by name. A report signed by a VLEK is refused too.
"""

import hashlib
import struct

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from plinius.trust.certificates import check_chain, read_certificate
from plinius.trust.claims import Claim, Claims, does_not_hold

REPORT_BYTES = 1184
_SIGNED = 0x2A0
_HALF = 72  # bytes of R and of S, little-endian
_SCALAR = 48
_ECDSA_P384_SHA384 = 1
_PRODUCTS = ("Milan", "Genoa")
_OID = "1.3.6.1.4.1.3704.1."
_TCB = {"boot_loader": ("3.1", 0), "tee": ("3.2", 1), "snp": ("3.3", 6), "microcode": ("3.8", 7)}


def verify_snp(report: bytes, vcek: bytes, ask: bytes, ark: bytes, now: int) -> Claims:
    """The claims of a report at the time `now` (seconds since 1970); certificates are DER.

    The claim `ark` is the SHA-256 of the root's public key (DER, SubjectPublicKeyInfo): the policy
    says which root it accepts. Raises AttestationError.
    """
    if len(report) != REPORT_BYTES:
        raise does_not_hold(f"an SNP report has {REPORT_BYTES} bytes")
    chain = [read_certificate(data, Encoding.DER) for data in (vcek, ask, ark)]
    check_chain(chain, now)
    version, guest_svn, policy, _, _, vmpl, algorithm = struct.unpack_from("<IIQ16s16sII", report)
    if not 2 <= version <= 5 or algorithm != _ECDSA_P384_SHA384:
        raise does_not_hold(f"an SNP report of version {version} cannot be read")
    _check_signature(report, chain[0])
    (flags,) = struct.unpack_from("<I", report, 0x48)
    if flags >> 2 & 7:
        raise does_not_hold("it is not signed by the key of a chip (VCEK)")
    tcb, chip = report[0x180:0x188], report[0x1A0:0x1E0]
    _check_vcek(chain[0], tcb, chip)
    values: dict[str, Claim] = {
        "measurement": report[0x90:0xC0].hex(),
        "host_data": report[0xC0:0xE0].hex(),
        "id_key_digest": report[0xE0:0x110].hex(),
        "vmpl": vmpl,
        "guest_svn": guest_svn,
        "smt": bool(policy >> 16 & 1),
        "migration": bool(policy >> 18 & 1),
        "debug": bool(policy >> 19 & 1),
        "platform": chip.hex(),
        "ark": hashlib.sha256(_public_key(chain[2])).hexdigest(),
        **{name: tcb[at] for name, (_, at) in _TCB.items()},
    }
    return Claims(report[0x50:0x90], values)


def _check_signature(report: bytes, vcek: x509.Certificate) -> None:
    r, s = report[_SIGNED : _SIGNED + _HALF], report[_SIGNED + _HALF : _SIGNED + 2 * _HALF]
    if any(r[_SCALAR:] + s[_SCALAR:] + report[_SIGNED + 2 * _HALF :]):
        raise does_not_hold("its signature is not in the form of AMD")
    try:
        key = vcek.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise does_not_hold("the key of its chip cannot be read") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise does_not_hold("the key of its chip is of another kind")
    signature = encode_dss_signature(int.from_bytes(r, "little"), int.from_bytes(s, "little"))
    try:
        key.verify(signature, report[:_SIGNED], ECDSA(SHA384()))
    except InvalidSignature:
        raise does_not_hold("its signature is not that of its chip") from None


def _check_vcek(vcek: x509.Certificate, tcb: bytes, chip: bytes) -> None:
    """Refuse a certificate of another product, TCB or chip than the report's."""
    product = _extension(vcek, "2")[2:].decode("latin-1")  # an IA5String
    if not product.startswith(_PRODUCTS):
        raise does_not_hold(f"the product is not {' or '.join(_PRODUCTS)}")
    for name, (oid, at) in _TCB.items():
        value = _extension(vcek, oid)  # a DER INTEGER of one or two bytes
        if value[:1] != b"\2" or int.from_bytes(value[2:], "big") != tcb[at]:
            raise does_not_hold(f"its certificate is for another TCB ({name})")
    if _extension(vcek, "4")[-len(chip) :] != chip:
        raise does_not_hold("its certificate is for another chip")


def _extension(certificate: x509.Certificate, oid: str) -> bytes:
    try:
        wanted = x509.ObjectIdentifier(_OID + oid)
        found = certificate.extensions.get_extension_for_oid(wanted).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise does_not_hold("the certificate of its chip is not one of AMD's") from None
    assert isinstance(found, x509.UnrecognizedExtension)
    return found.value


def _public_key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
