"""X.509 certificates of attestation: read in one encoding only, and signed by the next in a chain.

Which root is trusted, and what the certificates say, is the caller's to check.
"""

import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from plinius.trust.claims import does_not_hold

# AMD's certificates of chips have the serial number 0, which RFC 5280 does not allow.
warnings.filterwarnings("ignore", "Parsed a serial number which wasn't positive")
_ERRORS = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion)


def read_certificate(data: bytes, encoding: Encoding) -> x509.Certificate:
    """A certificate in DER or PEM. Raises AttestationError if another text would say the same."""
    load = x509.load_pem_x509_certificate if encoding is Encoding.PEM else _load_der
    try:
        found = load(data)
        # Of the signature's unused bits there must be none: nothing else authenticates their count.
        whole = found.public_bytes(Encoding.DER).endswith(b"\0" + found.signature)
        if whole and found.public_bytes(encoding) == data:
            return found
    except _ERRORS:
        pass
    raise does_not_hold("it has a certificate that cannot be read")


def check_chain(chain: Sequence[x509.Certificate], now: int | None = None) -> None:
    """Raise AttestationError unless each certificate is signed by the next, the last by itself.

    With `now` (seconds since 1970) each must also be valid at that time.
    """
    for certificate, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
        try:
            certificate.verify_directly_issued_by(issuer)
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        except _ERRORS:
            raise does_not_hold("its certificates are not signed by each other") from None
        if now is not None and not begin.timestamp() <= now <= end.timestamp():
            raise does_not_hold("a certificate of it is not valid at this time")


def _load_der(data: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(data)
