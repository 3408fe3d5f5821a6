"""How a trainer reaches a broker: one connection, TLS by a trusted or pinned certificate.

What protects keys and anchor is in the messages (HPKE, and the lease's key): TLS hides who asks
for which job, and keeps others away. Without TLS only a broker on this machine is accepted.
"""

import hashlib
import ipaddress
import ssl
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from plinius.errors import AttestationError, NotInstalledError, StorageError
from plinius.jsonvalue import from_json

MAX_ANSWER_BYTES = 512 << 10
_SECONDS = 10
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Address:
    """Where a broker is: its URL, and a file of certificates (PEM) or a pinned key to trust.

    `pin` is the SHA-256 of the server's public key (DER, SubjectPublicKeyInfo; 32 bytes).
    """

    url: str
    certificates: Path | None = None
    pin: bytes | None = None

    @property
    def port(self) -> int:
        """The port of the broker. Raises AttestationError."""
        parts = urllib.parse.urlsplit(self.url)
        try:
            return parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise self.no_address() from None

    @property
    def is_a_name(self) -> bool:
        """Whether the host has to be looked up."""
        host = urllib.parse.urlsplit(self.url).hostname or ""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return host != "localhost"
        return False

    def no_address(self) -> AttestationError:
        """The refusal for a URL that no broker can have."""
        return AttestationError(
            f"{self.url} is not the address of a broker",
            "Give https://..., or http:// with an address of this machine",
        )


class UnreachableError(StorageError):
    """The broker does not answer: try again."""


class Client:
    """A connection to a broker. Raises AttestationError for an address that is not acceptable."""

    def __init__(self, address: Address) -> None:
        try:
            import httpx2
        except ImportError:
            raise NotInstalledError(
                "A broker is reached with the package httpx2", "Install plinius[trust]"
            ) from None
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL, OSError)
        self._url = address.url.rstrip("/")
        parts = urllib.parse.urlsplit(address.url)
        if parts.scheme == "http" and parts.hostname in _LOCAL:
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody: there is no TLS
        elif parts.scheme == "https" and parts.hostname:
            verify = _context(address, parts.hostname, address.port)
        else:
            raise address.no_address()
        self._http = httpx2.Client(
            verify=verify, timeout=_SECONDS, trust_env=False, follow_redirects=False
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def post(self, path: str, body: bytes) -> bytes:
        """What the broker answers. Raises UnreachableError; AttestationError with its refusal."""
        answer = bytearray()
        try:
            with self._http.stream("POST", self._url + path, content=body) as response:
                status = response.status_code
                for chunk in response.iter_bytes():
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise _no_broker(self._url)
        except self._errors as error:
            raise UnreachableError(
                f"The broker at {self._url} does not answer: {error or type(error).__name__}",
                "Check its address and certificate, and that it runs",
            ) from None
        if status in (408, 429, 502, 503, 504):
            raise UnreachableError(f"The broker at {self._url} is busy", "Try again later")
        if status != 200:
            raise _refusal(self._url, bytes(answer))
        return bytes(answer)


def _context(address: Address, host: str, port: int) -> ssl.SSLContext:
    try:
        if address.pin is None:
            return ssl.create_default_context(cafile=address.certificates)
        # The certificate whose key has this hash is then the only one that is trusted, and the
        # server shows in the handshake of every connection that it has the key.
        text = ssl.get_server_certificate((host, port), timeout=_SECONDS)
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"No TLS with the broker at {host}: {error}",
            "Check its address and certificate, and that it runs",
        ) from None
    found = x509.load_pem_x509_certificate(text.encode()).public_key()
    spki = found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if hashlib.sha256(spki).digest() != address.pin:
        raise AttestationError(
            f"The broker at {host} has another key than the one that is pinned",
            "Ask the owner for the pin; somebody may be between you and the broker",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the key is known, so its name says nothing more
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=text)
    return context


def _refusal(url: str, answer: bytes) -> AttestationError:
    try:
        found: dict[str, Any] = from_json(answer)
        what, todo = str(found["refused"])[:300], str(found["todo"])[:300]
    except (ValueError, KeyError):
        return _no_broker(url)
    return AttestationError(what, todo)


def _no_broker(url: str) -> AttestationError:
    return AttestationError(f"{url} does not answer as a broker", "Check the address")
