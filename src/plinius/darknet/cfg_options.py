"""The values of a .cfg file: what a key takes, its default, and the range.

As C's atoi and atof do, a reader stops at a `#`: `pad=1 # same` is 1.
"""

import math
import re
from dataclasses import dataclass
from typing import cast

MAX_DIMENSION = 1 << 20
MAX_LIST_ITEMS = 1000
MAX_VALUES = 2**28
"""The largest number of values in a record, or in the output of a layer for one record."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_REAL = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")

Value = int | float | str | tuple[float, ...] | None


@dataclass(frozen=True)
class Key:
    """The rule for the value of a key: its type, its default, and for numbers the range.

    `type` is int, float, str or tuple (a list of numbers with commas).
    """

    type: type
    default: Value
    low: float = -math.inf
    high: float = math.inf

    @property
    def wanted(self) -> str:
        """The rule as the predicate of a sentence, for an error message."""
        if self.type is tuple:
            return f"needs at most {MAX_LIST_ITEMS} numbers with commas between them"
        if (self.low, self.high) == (0, 1) and self.type is int:
            return "must be 0 or 1"
        noun = "an integer" if self.type is int else "a number"
        if math.isinf(self.low):
            return f"needs {noun}"
        if math.isinf(self.high):
            return f"needs {noun} of {self.low} or more"
        return f"needs {noun} from {self.low} to {self.high}"

    def read(self, text: str) -> Value:
        """The value of `text`, or None if it does not follow the rule."""
        text = text.partition("#")[0]
        if self.type is str:
            return text or None
        if self.type is tuple:
            numbers = [_real(number) for number in text.removesuffix(",").split(",")]
            return tuple(cast(list[float], numbers)) if _is_list(numbers) else None
        value = _integer(text) if self.type is int else _real(text)
        return value if value is not None and self.low <= value <= self.high else None


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) else None


def _real(text: str) -> float | None:
    value = float(text) if _REAL.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def _is_list(numbers: list[float | None]) -> bool:
    return len(numbers) <= MAX_LIST_ITEMS and None not in numbers


def integer(default: int | None, low: int = 0, high: int = MAX_DIMENSION) -> Key:
    """A key with an integer."""
    return Key(int, default, low, high)


def real(default: float | None, low: float = -math.inf, high: float = math.inf) -> Key:
    """A key with a number."""
    return Key(float, default, low, high)


def numbers() -> Key:
    """A key with numbers, commas between them; none by default."""
    return Key(tuple, ())


def text(default: str | None) -> Key:
    """A key with a text."""
    return Key(str, default)


FLAG = integer(0, 0, 1)
COUNT = integer(0, 0, 2**53)
