"""Commands to a TPM 2.0 without another program, which a hardened process could not start.

Layout: TCG, TPM 2.0 Library, Part 1 (19: HMAC sessions), Part 2 (TPMS_NV_PUBLIC, TPMA_NV) and
Part 3 (the commands). Two kinds of NV index are used, counters and plain bytes. Both are read and
written in HMAC sessions under a secret of this process: who does not know it can neither change
them nor answer in the TPM's place.
"""

import hashlib
import hmac
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from plinius import sealing
from plinius.errors import AnchorError, AttestationError
from plinius.trust.field_reader import FieldReader

DEVICE = "/dev/tpmrm0"
_SECONDS = 30.0
_MAX_RESPONSE = 4096
_SWTPM = re.compile(r"swtpm:(?:host=([0-9A-Za-z_.-]+),)?port=([0-9]{1,5})")

_PLAIN, _WITH_SESSIONS = 0x8001, 0x8002
_OWNER, _NOBODY, _PASSWORD = 0x40000001, 0x40000007, 0x40000009
_SHA256, _NO_ALGORITHM, _HMAC_SESSION = 0x000B, 0x0010, 0
_START_SESSION, _FLUSH, _GET_CAPABILITY = 0x176, 0x165, 0x17A
_DEFINE, _INCREMENT, _WRITE, _READ, _READ_PUBLIC = 0x12A, 0x134, 0x137, 0x14E, 0x169
_NO_INDEX, _UNWRITTEN, _NO_ROOM_FOR_SESSIONS = 0x18B, 0x14A, (0x903, 0x905)
_LATER = (0x908, 0x90A, 0x920, 0x922)  # yielded, testing, NV rate, retry
_LOADED_SESSIONS, _HANDLES = 0x02000000, 1
_WRITTEN = 1 << 29
_ATTRIBUTES = 1 << 2 | 1 << 18 | 1 << 25  # written and read by its own auth, no lockout
_COUNTER = 1 << 4
COUNTER_BYTES = 8


@dataclass(frozen=True)
class Index:
    """An NV index: its handle, how many bytes it has, and whether these are a counter."""

    handle: int
    size: int
    counter: bool

    def public(self, written: bool) -> bytes:
        """TPMS_NV_PUBLIC of it."""
        attributes = _ATTRIBUTES | _COUNTER * self.counter | _WRITTEN * written
        return struct.pack(">IHIHH", self.handle, _SHA256, attributes, 0, self.size)

    def name(self, written: bool) -> bytes:
        """Its name, which commands are bound to."""
        return struct.pack(">H", _SHA256) + hashlib.sha256(self.public(written)).digest()


_T = TypeVar("_T")


class _RefusedError(Exception):
    """The TPM answers a command with an error; the number is its response code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Tpm:
    """A TPM: the one that TPM2TOOLS_TCTI names as for tpm2-tools, else /dev/tpmrm0.

    The device or connection stays open. `secret` (32 bytes) is the auth value of its indices.
    Raises AnchorError, as all methods do.
    """

    def __init__(self, secret: bytes, where: str | None = None) -> None:
        where = where or os.environ.get("TPM2TOOLS_TCTI") or f"device:{DEVICE}"
        self._where, self._secret = where, secret.rstrip(b"\0")  # as a TPM keeps it
        self._socket: socket.socket | None = None
        self._known = set[Index]()
        try:
            if found := _SWTPM.fullmatch(where):
                address = (found[1] or "127.0.0.1", int(found[2]))
                self._socket = socket.create_connection(address, _SECONDS)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._file = self._socket.fileno()
            elif where.startswith("device:"):
                self._file = os.open(where[len("device:") :], os.O_RDWR | os.O_CLOEXEC)
            else:
                raise AnchorError(
                    f"{where[:80]} is no TPM that can be used here",
                    f"Set TPM2TOOLS_TCTI to device:{DEVICE} or swtpm:port=N",
                )
        except (OSError, OverflowError) as error:
            raise AnchorError(
                f"The TPM cannot be used: {getattr(error, 'strerror', None) or error}",
                f"Check {where[:80]}, and that this process may use it",
            ) from None

    def __repr__(self) -> str:
        return f"Tpm({self._where})"

    def close(self) -> None:
        """Close the device or connection."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._file)

    def is_written(self, index: Index) -> bool | None:
        """Whether an index has a value; None if there is no such index.

        Raises AnchorError also for another kind of index with this handle.
        """

        if index in self._known:  # if it was made anew since, its name is another: no answer holds
            return True

        def ask() -> bool | None:
            try:
                found = self._plain(_READ_PUBLIC, struct.pack(">I", index.handle))
            except _RefusedError as error:
                if error.code == _NO_INDEX:
                    return None
                raise
            public = FieldReader(found, "big").sized()
            if public not in (index.public(False), index.public(True)):
                raise AnchorError(
                    f"The TPM's index {index.handle:#x} is not of the kind that an anchor makes",
                    "Somebody made another one in its place: the anchor is lost",
                )
            if public == index.public(True):
                self._known.add(index)
            return index in self._known

        return self._tell(ask)

    def define(self, index: Index) -> None:
        """Make an index; the hierarchy of the owner must have no password."""
        auth = _sized(self._secret)
        self._tell(lambda: self._owner(_DEFINE, auth + _sized(index.public(False))))

    def count(self, index: Index) -> None:
        """Add one to a counter; the first time, it becomes larger than any counter ever was."""
        self._tell(lambda: self._in_session(_INCREMENT, index, b""))

    def write(self, index: Index, data: bytes) -> None:
        """Replace the bytes of an index."""
        body = _sized(data) + bytes(2)
        self._tell(lambda: self._in_session(_WRITE, index, body))

    def read(self, index: Index) -> bytes:
        """The bytes of an index."""
        body = struct.pack(">HH", index.size, 0)
        found = self._tell(lambda: self._in_session(_READ, index, body))
        if len(found) != 2 + index.size:
            raise _not_authentic()
        return found[2:]

    def _tell(self, ask: Callable[[], _T]) -> _T:
        """What `ask` gives; errors of the TPM and its device become one sentence."""
        try:
            return ask()
        except _RefusedError as error:
            raise AnchorError(
                f"The TPM refuses: response code {error.code:#x}",
                "tpm2_rc_decode says what it means; somebody may have changed the anchor's indices",
            ) from None
        except (OSError, ValueError, struct.error, AttestationError) as error:
            why = "it is cut short" if isinstance(error, AttestationError) else str(error)
            raise AnchorError(
                f"The TPM does not answer as one: {why or type(error).__name__}",
                "Check it; the same command then resumes the run",
            ) from None

    def _in_session(self, code: int, index: Index, body: bytes) -> bytes:
        """The parameters of the answer to a command that index and secret authorise."""
        written = self.is_written(index)
        caller = sealing.fresh(32)
        session, tpm = self._session(caller)
        names = index.name(bool(written)) * 2
        asked = hashlib.sha256(struct.pack(">I", code) + names + body).digest()
        newer = sealing.fresh(32)
        tag = self._tag(asked + newer + tpm + b"\0")
        auth = struct.pack(">I", session) + _sized(newer) + b"\0" + _sized(tag)
        handles = struct.pack(">II", index.handle, index.handle)
        area = struct.pack(">I", len(auth)) + auth
        try:
            answer = self._command(_WITH_SESSIONS, code, handles + area + body)
        except _RefusedError:  # then the session goes on
            self._plain(_FLUSH, struct.pack(">I", session))
            raise
        reader = FieldReader(answer, "big")
        found = reader.take(reader.number(4))
        nonce, attributes, theirs = reader.sized(), reader.take(1), reader.sized()
        said = hashlib.sha256(struct.pack(">II", 0, code) + found).digest()
        if not hmac.compare_digest(self._tag(said + nonce + newer + attributes), theirs):
            raise _not_authentic()
        return bytes(found)

    def _session(self, caller: bytes) -> tuple[int, bytes]:
        """A new session and the TPM's nonce; it ends with the next command."""
        symmetric = struct.pack(">BHH", _HMAC_SESSION, _NO_ALGORITHM, _SHA256)
        body = struct.pack(">II", _NOBODY, _NOBODY) + _sized(caller) + bytes(2) + symmetric
        try:
            found = self._plain(_START_SESSION, body)
        except _RefusedError as error:
            if error.code not in _NO_ROOM_FOR_SESSIONS or self._socket is None:
                raise
            self._flush_sessions()  # left behind by killed processes: here no kernel cleans up
            found = self._plain(_START_SESSION, body)
        reader = FieldReader(found, "big")
        return reader.number(4), reader.sized()

    def _flush_sessions(self) -> None:
        body = struct.pack(">III", _HANDLES, _LOADED_SESSIONS, 64)
        reader = FieldReader(self._plain(_GET_CAPABILITY, body), "big")
        reader.take(5)
        for _ in range(min(64, reader.number(4))):
            self._plain(_FLUSH, reader.take(4))

    def _tag(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, "sha256")

    def _owner(self, code: int, body: bytes) -> None:
        auth = struct.pack(">IHBH", _PASSWORD, 0, 0, 0)
        head = struct.pack(">II", _OWNER, len(auth))
        self._command(_WITH_SESSIONS, code, head + auth + body)

    def _plain(self, code: int, body: bytes) -> bytes:
        return self._command(_PLAIN, code, body)

    def _command(self, tag: int, code: int, body: bytes) -> bytes:
        """What follows the header of the answer."""
        message = struct.pack(">HII", tag, 10 + len(body), code) + body
        until = time.monotonic() + _SECONDS
        while True:
            answer = self._exchange(message)
            if len(answer) < 10 or int.from_bytes(answer[2:6], "big") != len(answer):
                raise ValueError("an answer is cut short")
            answered = int.from_bytes(answer[6:10], "big")
            if answered == 0:
                return answer[10:]
            if answered not in _LATER or time.monotonic() > until:
                raise _RefusedError(answered)
            time.sleep(0.01)

    def _exchange(self, message: bytes) -> bytes:
        if os.write(self._file, message) != len(message):
            raise OSError("a command was cut short")
        if not select.select([self._file], [], [], _SECONDS)[0]:
            raise OSError("it gives no answer")
        answer = os.read(self._file, _MAX_RESPONSE)
        while self._socket and len(answer) < _size_of(answer):  # a stream, which has no messages
            if not (more := os.read(self._file, _MAX_RESPONSE)):
                break
            answer += more
        return answer


def _size_of(answer: bytes) -> int:
    size = int.from_bytes(answer[2:6], "big") if len(answer) >= 6 else 10
    return min(_MAX_RESPONSE, size) if answer else 0


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _not_authentic() -> AnchorError:
    return AnchorError(
        "The TPM's answer is not authentic",
        "Somebody is between this process and the TPM, or made the anchor's indices anew",
    )
