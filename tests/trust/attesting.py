"""What the tests of evidence share: evidence of roots of their own, policies, mutations."""

import datetime
import hashlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from plinius.trust.evidence import PUBLIC_KEY_BYTES, Evidence, bind

NOW = 1_760_000_000
VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "attestation"
JOB, NONCE = b"\1" * 32, b"\2" * 32
PUBLIC_KEY = bytes(range(256)) * 4 + bytes(PUBLIC_KEY_BYTES - 1024)
SNP_OID = "1.3.6.1.4.1.3704.1."


def vector(name: str) -> bytes:
    """A file of real evidence; the test is skipped where it is not installed."""
    for folder in (VECTORS, Path("/work/shared/vectors/attestation")):
        if (folder / name).exists():
            return (folder / name).read_bytes()
    pytest.skip(f"real evidence is not here: {name}")


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    extensions: dict[str, bytes] | None = None,
) -> x509.Certificate:
    """A certificate that is valid for a day around `NOW`."""
    at = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - day)
        .not_valid_after(at + day)
    )
    for oid, value in (extensions or {}).items():
        one = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(one, critical=False)
    return builder.sign(issuer_key, SHA384())


class SnpMachine:
    """An SEV-SNP chip with a root of its own, which signs what it is told."""

    def __init__(self, tcb: bytes = bytes([3, 0, 0, 0, 0, 0, 8, 115]), chip: int = 7) -> None:
        self._tcb, self._chip = tcb, bytes([chip]) * 64
        ark, ask, self._key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
        values = {"2": b"\x16\x08Milan-B0", "4": self._chip}
        values |= {f"3.{n}": b"\2\1" + tcb[i : i + 1] for n, i in ((1, 0), (2, 1), (3, 6), (8, 7))}
        extensions = {SNP_OID + name: value for name, value in values.items()}
        chain = (
            certificate("VCEK", self._key, "ASK", ask, extensions),
            certificate("ASK", ask, "ARK", ark),
            certificate("ARK", ark, "ARK", ark),
        )
        self._chain = [one.public_bytes(Encoding.DER) for one in chain]
        spki = ark.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.ark = hashlib.sha256(spki).hexdigest()

    def evidence(
        self,
        public_key: bytes = PUBLIC_KEY,
        nonce: bytes = NONCE,
        job: bytes = JOB,
        *,
        policy: int = 0x20000,
        vmpl: int = 0,
        tcb: bytes | None = None,
        chip: bytes | None = None,
        flags: int = 0,
        version: int = 2,
    ) -> Evidence:
        """Evidence of this chip, with any field set otherwise."""
        report = bytearray(1184)
        struct.pack_into("<IIQ", report, 0, version, 1, policy)
        struct.pack_into("<II", report, 0x30, vmpl, 1)
        struct.pack_into("<I", report, 0x48, flags)
        report[0x50:0x90] = bind(public_key, nonce, job)
        report[0x90:0xC0] = b"\xaa" * 48
        report[0x180:0x188] = tcb or self._tcb
        report[0x1A0:0x1E0] = chip or self._chip
        signature = self._key.sign(bytes(report[:0x2A0]), ec.ECDSA(SHA384()))
        r, s = decode_dss_signature(signature)
        report[0x2A0:0x2E8] = r.to_bytes(72, "little")
        report[0x2E8:0x330] = s.to_bytes(72, "little")
        vcek, ask, ark = self._chain
        fields = {"report": bytes(report), "vcek": vcek, "ask": ask, "ark": ark}
        return Evidence("snp", public_key, nonce, job, fields)

    def rule(self, more: str = "") -> str:
        """A rule that accepts this chip's evidence."""
        return (
            f'[[rule]]\nname = "snp"\nkind = "snp"\nark = ["{self.ark}"]\n'
            f'measurement = ["{"aa" * 48}"]\nmin_boot_loader = 3\nmin_tee = 0\nmin_snp = 8\n'
            f"min_microcode = 115\n{more}\n"
        )


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Changed copies of some bytes: flipped, set, cut out, repeated, swapped, cut off."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        new = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at, length = rng.randrange(len(new)), rng.choice((1, 1, 2, 8, 64))
            kind = rng.randrange(6)
            if kind == 0:
                new[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                new[at] = rng.choice(b'0123456789abcdefABCDEF"{}:, \0\xff')
            elif kind == 2 and len(new) > length:
                del new[at : at + length]
            elif kind == 3:
                new[at:at] = new[at : at + length]
            elif kind == 4:
                other = rng.randrange(len(new))
                new[at], new[other] = new[other], new[at]
            elif at:
                del new[at:]
        if bytes(new) != data:
            made += 1
            yield bytes(new)
