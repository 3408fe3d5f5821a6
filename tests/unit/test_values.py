"""Values: what was taken comes back with its class and its bits, whatever is there before."""

import collections
import copy
import dataclasses
import datetime
import enum
import pathlib
import struct
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plinius.errors import MismatchError
from plinius.mirror import Mirror
from plinius.slots import newest_snapshot
from resume.loops import alike
from unit.mirroring import KEY


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


class Flags(enum.Flag):
    X = 1
    Y = 2


Pair = collections.namedtuple("Pair", "a b")


@dataclasses.dataclass
class Open:
    a: int = 1
    t: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int = 1


class MyInt(int):
    pass


class MyText(str):
    pass


class MyDict(dict):  # type: ignore[type-arg]
    pass


class MyList(list):  # type: ignore[type-arg]
    pass


class Attributes(dict):  # type: ignore[type-arg]
    """Its items are its attributes."""

    def __init__(self, *items: Any, **more: Any) -> None:
        super().__init__(*items, **more)
        self.__dict__ = self


NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0]
VALUES: dict[str, Any] = {
    "enum": Colour.RED, "enum of text": Colour.BLUE, "IntEnum": Level.LOW, "StrEnum": Word.A,
    "flags": Flags.X | Flags.Y, "namedtuple": Pair(1, torch.ones(2)), "dataclass": Open(3, [1]),
    "frozen dataclass": Frozen(4), "subclass of int": MyInt(5), "of str": MyText("x" * 3000),
    "of dict": MyDict(a=1), "of list": MyList([1, 2]), "attributes": Attributes(b=2),
    "OrderedDict": collections.OrderedDict(b=1, a=2), "Counter": collections.Counter("abca"),
    "defaultdict": collections.defaultdict(list, {1: [2]}), "deque": collections.deque([1], 5),
    "set": {1, "a", (2, 3)}, "frozenset": frozenset([1, None]), "Decimal": Decimal("1.10"),
    "Fraction": Fraction(2, 6), "date": datetime.date(2020, 1, 1), "time": datetime.time(1, 2, 3),
    "datetime": datetime.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(-1, 2, 3), "path": pathlib.Path("/a/b"),
    "windows path": pathlib.PureWindowsPath("c:/x"), "bytearray": bytearray(b"xy"),
    "bytes": b"z" * 3000, "text": "s\ud800" * 3000, "long key": {"k" * 3000: 1},
    "float32": np.float32(1.5), "np.str_": np.str_("abc"), "np.bool": np.bool_(True),
    "datetime64": np.datetime64("2020-01-01"), "np.bytes_": np.bytes_(b"ab\0"),
    "masked": np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]), "texts": np.array(["x", "yy"]),
    "records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8", (2,))]),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "0-d": np.array(5.0),
    "no items": np.array([]), "-0.0": -0.0, "True": True, "1": 1, "1.0": 1.0, "nan": NAN,
    "inf": float("inf"), "2**5000": 2**5000, "-2**70": -(2**70), "range": range(1, 10, 2),
    "complex": complex(-0.0, NAN), "slice": slice(1, None), "sparse": torch.eye(3).to_sparse(),
    "dtype": torch.float16, "np dtype": np.dtype("f4"), "size": torch.Size([1, 2]), "None": None,
    "expanded": torch.arange(3.0).expand(2, 3), "with gaps": torch.arange(6.0)[::2],
    "nested": {"a": {("k", 1): [1, {2: 3}]}, Colour.RED: {3.5: ()}},
    "wants a gradient": torch.zeros(2, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}  # fmt: skip


@pytest.mark.parametrize("fresh", ["none", "the same", "another", "its like"])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_with_its_class_and_bits(name: str, fresh: str, tmp_path: Path) -> None:
    """Into nothing, into itself, into something else, into another of its class."""
    value, path = VALUES[name], tmp_path / "run.region"
    with Mirror.open(path, KEY, {"it": value}) as mirror:
        mirror.mirror_out(np.int64(3))
        digest = mirror.digest()
    before = {"none": None, "the same": value, "another": [1, "x"], "its like": like(value)}
    state = {"it": before[fresh]}
    with Mirror.open(path, KEY, state) as mirror:
        assert mirror.mirror_in() == 3
        assert mirror.not_bit_exact is None
        assert alike(state["it"], value)
        assert mirror.digest() == digest


def like(value: Any) -> Any:
    """Another value of the class, with other content where that is simple."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return torch.nn.Parameter(torch.zeros(7)) if value.requires_grad else torch.zeros(7)
    if isinstance(value, dict | list | set | collections.deque | bytearray):
        other = copy.copy(value)
        other.clear()
        return other
    return copy.deepcopy(value)


def test_values_that_json_takes_for_equal_are_distinguished(tmp_path: Path) -> None:
    """An object that shows 1 where 1.0 was mirrored did not restore its state."""

    class Number:
        def __init__(self, value: Any) -> None:
            self.value = value

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    for mirrored, shown in ((1, 1.0), (1, True), (0.0, -0.0)):
        path = tmp_path / f"{mirrored}{shown}"
        with Mirror.open(path, KEY, {"it": Number(mirrored)}) as mirror:
            mirror.mirror_out(1)
        with Mirror.open(path, KEY, {"it": Number(shown)}) as mirror:
            mirror.mirror_in()
            assert mirror.not_bit_exact == f"it/value was {mirrored} and is {shown}"


def test_large_bytes_and_a_long_log_are_tensors_and_can_be_read(tmp_path: Path) -> None:
    """34 MB of bytes, and a log whose JSON is larger than a manifest may be."""
    path, raw = tmp_path / "run.region", bytes(34 << 20)
    log = ["x" * 1000] * 70_000
    with Mirror.open(path, KEY, {"raw": raw, "log": None}) as mirror:
        mirror.mirror_out(1)
    state: dict[str, Any] = {"raw": b"", "log": None}
    with Mirror.open(path, KEY, state) as mirror:
        assert mirror.mirror_in() == 1
        assert state["raw"] == raw
        state["log"] = log
        mirror.mirror_out(2)
        state["log"] = None
        assert mirror.mirror_in() == 2
        assert state["log"] == log
    sizes = {tensor.name: tensor.nbytes for tensor in newest_snapshot(path, KEY).tensors}
    assert sizes["raw"] == len(raw)


def test_a_class_that_this_process_has_not_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for among the modules that are there; nothing is imported."""
    path = tmp_path / "run.region"
    with Mirror.open(path, KEY, {"it": Colour.RED}) as mirror:
        mirror.mirror_out(1)
    monkeypatch.setattr(f"{__name__}.Colour", None)
    with Mirror.open(path, KEY, {"it": None}) as mirror:
        with pytest.raises(MismatchError, match=r"it was a .*test_values\.Colour, and this"):
            mirror.mirror_in()
