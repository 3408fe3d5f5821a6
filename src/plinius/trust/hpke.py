"""The one suite of HPKE (RFC 9180) here, and its public keys: for releases and for recipients.

KEM X25519MLKEM768, so that a record of an exchange stays closed to a later quantum computer; KDF
HKDF-SHA256, AEAD AES-256-GCM.
"""

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite

SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_BYTES = 1184
PUBLIC_BYTES = _MLKEM_BYTES + 32


def public_key(public: bytes) -> MLKEM768X25519PublicKey:
    """The key that is PUBLIC_BYTES long: ML-KEM-768's, then X25519's. Raises ValueError."""
    if len(public) != PUBLIC_BYTES:
        raise ValueError(f"a public key has {PUBLIC_BYTES} bytes")
    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_BYTES]),
        X25519PublicKey.from_public_bytes(public[_MLKEM_BYTES:]),
    )
