"""The sections and keys of a .cfg file, with types, defaults and ranges.

Keys and defaults: darknet: parser.c, parse_net_options and the parse_ function of each layer.
"""

import math
import re
from dataclasses import dataclass
from typing import cast

MAX_DIMENSION = 1 << 20
MAX_LIST_ITEMS = 1000
MAX_VALUES = 2**28
"""The largest number of values in a record, or in the output of a layer for one record."""

ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "soft": "softmax",
}
UNSUPPORTED = (
    *("activation", "batchnorm", "crnn", "crop", "deconv", "deconvolutional", "detection", "gru"),
    *("iseg", "l2norm", "local", "logistic", "lrn", "lstm", "normalization", "region", "reorg"),
    *("rnn", "route", "shortcut", "upsample", "yolo"),
)
POLICIES = ("constant", "step", "steps", "exp", "poly", "random", "sigmoid")

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
        if self.type is str:
            return text or None
        if self.type is tuple:
            numbers = [_real(number) for number in text.split(",")]
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


def _int(default: int | None, low: int = 0, high: int = MAX_DIMENSION) -> Key:
    return Key(int, default, low, high)


def _float(default: float, low: float = -math.inf, high: float = math.inf) -> Key:
    return Key(float, default, low, high)


_FLAG = _int(0, 0, 1)
_COUNT = _int(0, 0, 2**53)

NET_KEYS: dict[str, Key] = {
    "batch": _int(1, 1),
    "subdivisions": _int(1, 1),
    "time_steps": _int(1, 1),
    "learning_rate": _float(0.001, 0),
    "momentum": _float(0.9, 0),
    "decay": _float(0.0001, 0),
    "height": _int(0),
    "width": _int(0),
    "channels": _int(0),
    "inputs": _int(0, 0, MAX_VALUES),
    "policy": Key(str, "constant"),
    "burn_in": _COUNT,
    "power": _float(4, 0),
    "step": _int(1, 1, 2**53),
    "scale": _float(1),
    "gamma": _float(1),
    "steps": Key(tuple, ()),
    "scales": Key(tuple, ()),
    "max_batches": _COUNT,
    "adam": _FLAG,
    "clip": _float(0),
}
# The original uses these for its own image loading, or for layers that are not here.
NET_UNUSED = (
    *("notruth", "random", "B1", "B2", "eps", "max_crop", "min_crop", "max_ratio", "min_ratio"),
    *("center", "angle", "aspect", "saturation", "exposure", "hue"),
)
COMMON_KEYS: dict[str, Key] = {
    "truth": _FLAG,
    "onlyforward": _FLAG,
    "stopbackward": _FLAG,
    "dontsave": _FLAG,
    "dontload": _FLAG,
    "dontloadscales": _FLAG,
    "numload": _int(0),
    "learning_rate": _float(1, 0),
    "smooth": _float(0),
}
LAYER_KEYS: dict[str, dict[str, Key]] = {
    "convolutional": {
        "filters": _int(1, 1),
        "size": _int(1, 1, 1024),
        "stride": _int(1, 1, 1024),
        "pad": _FLAG,
        "padding": _int(0, 0, 1024),
        "groups": _int(1, 1),
        "batch_normalize": _FLAG,
        "activation": Key(str, "logistic"),
        "flipped": _FLAG,
        "binary": _FLAG,
        "xnor": _FLAG,
        "dot": _float(0),
    },
    "connected": {
        "output": _int(1, 1),
        "activation": Key(str, "logistic"),
        "batch_normalize": _FLAG,
    },
    "maxpool": {
        "stride": _int(1, 1, 1024),
        "size": _int(None, 1, 1024),
        "padding": _int(None, 0, 1024),
    },
    "avgpool": {},
    "dropout": {"probability": _float(0.5, 0, 0.999)},
    "softmax": {
        "groups": _int(1, 1),
        "temperature": _float(1, 1e-6),
        "noloss": _FLAG,
        "spatial": _FLAG,
        "tree": Key(str, None),
    },
    "cost": {"type": Key(str, "sse"), "scale": _float(1)},
}
LAYER_UNUSED = {"cost": ("ratio", "noobj", "thresh")}

# The original reads these and uses them nowhere in its CPU code: setting one gives a warning.
NO_EFFECT = ("adam", "clip", "binary", "dot", "spatial", "smooth", "onlyforward")
REFUSED = ("xnor", "numload", "tree")
