"""The messages of anchoring, authenticated with the lease's key: request and answer, as JSON.

A request is authenticated by HMAC-SHA256 over its JSON, an answer over the request's tag and its
own JSON. So nobody between trainer and broker can make either, or give an old answer again.
"""

import hmac
import re
from dataclasses import dataclass

from plinius.errors import AttestationError
from plinius.jsonvalue import Json, from_json, to_json
from plinius.sealing import Bytes
from plinius.trust.ledger import Newest

MAX_MESSAGE_BYTES = 4096
ASKED = ("begin", "advance", "rewind")
_KEYS = {"lease", "ask", "run", "old", "new", "fresh", "tag"}
_MAX_COMMIT = 1 << 40


@dataclass(frozen=True)
class AnchorRequest:
    """What a trainer asks of the anchor; `fresh` is random (32 hex digits)."""

    lease: str
    ask: str
    run: str
    old: Newest | None
    new: Newest | None
    fresh: str

    def encode(self, key: Bytes) -> tuple[bytes, str]:
        """The message, and its tag."""
        plain = self._plain()
        tag = _tag(key, b"request", to_json(plain))
        return to_json({**plain, "tag": tag}), tag

    def is_tagged(self, key: Bytes, tag: str) -> bool:
        """Whether the tag is the one under this key."""
        return hmac.compare_digest(_tag(key, b"request", to_json(self._plain())), tag)

    def _plain(self) -> dict[str, Json]:
        return {
            "lease": self.lease, "ask": self.ask, "run": self.run, "fresh": self.fresh,
            "old": list(self.old) if self.old else None,
            "new": list(self.new) if self.new else None,
        }  # fmt: skip


def decode_request(data: bytes) -> tuple[AnchorRequest, str]:
    """A request and its tag, which is not checked yet. Raises AttestationError."""
    try:
        found = from_json(data)
        if found.keys() != _KEYS or found["ask"] not in ASKED:
            raise ValueError
        request = AnchorRequest(
            _hex(found["lease"], 16),
            found["ask"],
            _hex(found["run"], 16),
            _newest(found["old"]),
            _newest(found["new"]),
            _hex(found["fresh"], 16),
        )
        return request, _hex(found["tag"], 32)
    except (ValueError, TypeError):
        raise AttestationError("The request is not of this format", "Use one release") from None


def encode_answer(
    key: Bytes, request_tag: str, newest: Newest | None, refusal: str | None
) -> bytes:
    """The broker's answer: the newest commit, or the sentence of a refusal."""
    plain: dict[str, Json] = {"newest": list(newest) if newest else None, "refusal": refusal}
    tag = _tag(key, b"answer" + request_tag.encode(), to_json(plain))
    return to_json({**plain, "tag": tag})


def decode_answer(key: Bytes, request_tag: str, data: bytes) -> tuple[Newest | None, str | None]:
    """What the broker answered to a request. Raises ValueError if it is not the broker's."""
    found = from_json(data)
    if found.keys() != {"newest", "refusal", "tag"}:
        raise ValueError("it is no answer")
    plain = {"newest": found["newest"], "refusal": found["refusal"]}
    wanted = _tag(key, b"answer" + request_tag.encode(), to_json(plain))
    if not hmac.compare_digest(wanted, _hex(found["tag"], 32)):
        raise ValueError("it is not authentic")
    return _newest(found["newest"]), None if found["refusal"] is None else str(found["refusal"])


def _tag(key: Bytes, role: bytes, text: bytes) -> str:
    return hmac.digest(key, b"plinius/anchor/1/" + role + b"|" + text, "sha256").hex()


def _newest(value: object) -> Newest | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("a commit is a number and a digest")
    number, digest = value
    if type(number) is not int or not 0 < number < _MAX_COMMIT:
        raise ValueError("a commit has a number")
    return number, _hex(digest, 32)


def _hex(value: object, length: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value):
        raise ValueError(f"there must be {length} bytes in hex")
    return value
