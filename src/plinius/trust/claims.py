"""What verified evidence says: the claims that a policy judges."""

from dataclasses import dataclass

from plinius.errors import AttestationError

Claim = str | int | bool | tuple[str, ...]


@dataclass(frozen=True)
class Claims:
    """The claims of evidence whose signatures hold, by name; bytes are hex digits.

    `report_data` is what the device signed (64 bytes).
    """

    report_data: bytes
    values: dict[str, Claim]


def does_not_hold(why: str) -> AttestationError:
    """The refusal for evidence whose signatures or certificates do not hold."""
    return AttestationError(
        f"The evidence does not hold: {why}",
        "Make new evidence on the machine that trains, with plinius attest",
    )
