"""An SGX and TDX machine with a root of its own: quotes and collateral as Intel's are made.

So the whole path (binding, debug bit, TCB status, revocation) is tested without real evidence.
"""

import datetime
import hashlib
import json
import struct
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from plinius.trust.evidence import Evidence, bind
from trust.attesting import JOB, NONCE, NOW, PUBLIC_KEY

DAY = datetime.timedelta(days=1)
AT = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
FMSPC, PPID = bytes.fromhex("00a067110000"), b"\x0d" * 16
QE_SIGNER = {"sgx": b"\x8c" * 32, "tdx": b"\xdc" * 32}
SGX = "1.2.840.113741.1.13.1"


def der(tag: int, value: bytes) -> bytes:
    length = len(value)
    head = bytes([length]) if length < 128 else b"\x82" + length.to_bytes(2, "big")
    return bytes([tag]) + head + value


def oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    out = [first * 40 + second]
    for number in rest:
        parts = [number & 127]
        while number := number >> 7:
            parts.append(number & 127 | 128)
        out += parts[::-1]
    return der(6, bytes(out))


def pair(name: str, value: bytes) -> bytes:
    return der(0x30, oid(name) + value)


def whole(number: int) -> bytes:
    return der(2, number.to_bytes(1 + (number.bit_length() >= 8), "big"))


def pck_extension() -> bytes:
    """PPID, TCB, PCE id, FMSPC and kind of a platform (Intel, SGX PCK certificate profile)."""
    tcb = b"".join(pair(f"{SGX}.2.{n}", whole(2)) for n in range(1, 17))
    tcb += pair(f"{SGX}.2.17", whole(13)) + pair(f"{SGX}.2.18", der(4, b"\2" * 16))
    return der(
        0x30,
        pair(f"{SGX}.1", der(4, PPID))
        + pair(f"{SGX}.2", der(0x30, tcb))
        + pair(f"{SGX}.3", der(4, bytes(2)))
        + pair(f"{SGX}.4", der(4, FMSPC))
        + pair(f"{SGX}.5", der(10, b"\0")),
    )


class Authority:
    """A key with its certificate, signed by another authority or by itself."""

    def __init__(self, name: str, issuer: "Authority | None", leaf: bytes | None = None) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        by = issuer or self
        self.serial = x509.random_serial_number()
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(by.name)
            .public_key(self.key.public_key())
            .serial_number(self.serial)
            .not_valid_before(AT - 10 * DAY)
            .not_valid_after(AT + 10 * DAY)
            .add_extension(x509.BasicConstraints(leaf is None, None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    leaf is not None, False, False, False, False, leaf is None, leaf is None,
                    False, False,
                ),
                critical=True,
            )
        )  # fmt: skip
        if leaf:
            one = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX), leaf)
            builder = builder.add_extension(one, critical=False)
        self.certificate = builder.sign(by.key, SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def crl(self, *revoked: int) -> str:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(AT - DAY).next_update(AT + DAY)
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
        )
        for serial in revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(AT - DAY)
            builder = builder.add_revoked_certificate(one.build())
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.DER).hex()

    def sign(self, data: bytes) -> bytes:
        """ECDSA, as r and s of 32 bytes."""
        return raw_signature(self.key, data)


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class IntelMachine:
    """A platform with SGX and TDX."""

    def __init__(self) -> None:
        self.root = Authority("Root CA", None)
        self.platform = Authority("Platform CA", self.root)
        self.pck = Authority("PCK", self.platform, pck_extension())
        self.signing = Authority("TCB Signing", self.root, b"\x05\0")

    def collateral(
        self, kind: str, status: str = "UpToDate", revoked: bool = False, age: int = 0
    ) -> str:
        """The collateral of this platform; `age` in days."""
        times = {
            "issueDate": f"{AT - (1 + age) * DAY:%Y-%m-%dT%H:%M:%SZ}",
            "nextUpdate": f"{AT + (1 - age) * DAY:%Y-%m-%dT%H:%M:%SZ}",
            "tcbEvaluationDataNumber": 17,
        }
        parts: dict[str, Any] = {"sgxtcbcomponents": [{"svn": 1}] * 16, "pcesvn": 11}
        tcb: dict[str, Any] = {"id": kind.upper(), "version": 3, "fmspc": FMSPC.hex().upper()}
        tcb |= {"pceId": "0000", "tcbType": 0, **times}
        if kind == "tdx":
            parts["tdxtcbcomponents"] = [{"svn": 0}] * 16
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
            tcb["tdxModule"] = module
        level = {"tcb": parts, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status}
        tcb["tcbLevels"] = [level]
        enclave = {
            "id": "QE" if kind == "sgx" else "TD_QE", "version": 2, **times,
            "miscselect": "00000000", "miscselectMask": "FFFFFFFF", "attributes": "11" + "00" * 15,
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_SIGNER[kind].hex().upper(), "isvprodid": 1,
            "tcbLevels": [
                {"tcb": {"isvsvn": 8}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": "UpToDate"}
            ],
        }  # fmt: skip
        texts = [json.dumps(one, separators=(",", ":")) for one in (tcb, enclave)]
        chain = self.signing.pem + self.root.pem
        return json.dumps(
            {
                "pck_crl_issuer_chain": self.platform.pem + self.root.pem,
                "root_ca_crl": self.root.crl(),
                "pck_crl": self.platform.crl(*([self.pck.serial] if revoked else [])),
                "tcb_info_issuer_chain": chain,
                "tcb_info": texts[0],
                "tcb_info_signature": self.signing.sign(texts[0].encode()).hex(),
                "qe_identity_issuer_chain": chain,
                "qe_identity": texts[1],
                "qe_identity_signature": self.signing.sign(texts[1].encode()).hex(),
            }
        )

    def evidence(
        self,
        kind: str,
        public_key: bytes = PUBLIC_KEY,
        nonce: bytes = NONCE,
        job: bytes = JOB,
        debug: bool = False,
    ) -> Evidence:
        """Evidence of an enclave or TD whose measurements are 0xaa, bound as it should be."""
        bound = bind(public_key, nonce, job)
        body = bytearray(384 if kind == "sgx" else 584)
        if kind == "sgx":
            body[48] = 5 | 2 * debug
            body[64:96] = b"\xaa" * 32
            body[128:160] = b"\xbb" * 32
            struct.pack_into("<HH", body, 256, 7, 3)
            body[320:] = bound
        else:
            body[120], body[123] = debug, 0x10  # SEPT_VE_DISABLE
            body[136:184] = b"\xaa" * 48
            body[328:520] = b"\xaa" * 192
            body[520:] = bound
        version, tee = (3, 0) if kind == "sgx" else (4, 0x81)
        head = struct.pack("<HHIHH16s20s", version, 2, tee, 0, 0, VENDOR, bytes(20))
        key = ec.generate_private_key(ec.SECP256R1())
        numbers = key.public_key().public_numbers()
        public = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        auth = bytes(range(32))
        enclave = bytearray(384)
        enclave[48] = 0x11
        enclave[128:160] = QE_SIGNER[kind]
        struct.pack_into("<HH", enclave, 256, 1, 8)
        enclave[320:352] = hashlib.sha256(public + auth).digest()
        chain = (self.pck.pem + self.platform.pem + self.root.pem).encode()
        inner = bytes(enclave) + self.pck.sign(bytes(enclave))
        inner += struct.pack("<H", len(auth)) + auth + struct.pack("<HI", 5, len(chain)) + chain
        if kind == "tdx":
            inner = struct.pack("<HI", 6, len(inner)) + inner
        signed = raw_signature(key, head + body) + public + inner
        quote = head + bytes(body) + struct.pack("<I", len(signed)) + signed
        return Evidence(kind, public_key, nonce, job, {"quote": quote})
