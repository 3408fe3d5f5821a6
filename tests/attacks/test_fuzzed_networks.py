"""Random cfg and weights files: refused in one sentence or taken, and never anything else."""

import random
import re
import struct
import time
from pathlib import Path

import pytest
import torch

from plinius.darknet.cfg import parse_cfg
from plinius.darknet.cfg_keys import ALIASES, COMMON_KEYS, LAYER_KEYS, NET_KEYS, UNUSED
from plinius.darknet.description import describe, table
from plinius.darknet.network import Network
from plinius.darknet.weights import load_weights_bytes, save_weights
from plinius.errors import PliniusError

CFGS = 100_000
WEIGHTS = 10_000

KINDS = (*LAYER_KEYS, *ALIASES, "net", "silence", "", "x")
KEYS = sorted({key for keys in LAYER_KEYS.values() for key in keys} | set(COMMON_KEYS))
KEYS += sorted(set(NET_KEYS) | {key for keys in UNUSED.values() for key in keys})
VALUES = (
    *("0", "1", "2", "3", "4", "7", "-1", "-2", "-3", "1024", "1048576", "99999999999999999999"),
    *("", ".5", "1e30", "-1e30", "1e999", "nan", "inf", "0x10", "1_0", "\u0661", "1#2", "#", "="),
    *("leaky", "mish", "linear", "sse", "smooth", "poly", "steps", "-1,-2", "0,1", "1,", ",", "a"),
)
SMALL = """[net]
batch=2
height=4
width=4
channels=2
[convolutional]
filters=2
size=3
pad=1
batch_normalize=1
activation=leaky
[route]
layers=-1
[connected]
output=2
[softmax]
"""


def written(draws: random.Random) -> str:
    """A cfg of a few sections with keys that fit them or not, or a small one with changes."""
    if draws.random() < 0.4:
        lines = SMALL.splitlines()
        for _ in range(draws.randrange(1, 4)):
            at = draws.randrange(len(lines))
            kept = lines[at].partition("=")[0]
            lines[at] = draws.choice((f"{kept}={draws.choice(VALUES)}", "", lines[0], "[route]"))
        return "\n".join(lines)
    sides = "height=8\nwidth=8\nchannels=4\n" if draws.random() < 0.8 else "inputs=16\n"
    text = [f"[net]\nbatch={draws.choice((1, 2, 6))}\n{sides}"]
    for _ in range(draws.randrange(1, 5)):
        kind = draws.choice(KINDS)
        text.append(f"[{kind}]\n")
        own = (*LAYER_KEYS.get(ALIASES.get(kind, kind), ()), *COMMON_KEYS)
        for _ in range(draws.randrange(4)):
            key = draws.choice(own if draws.random() < 0.8 else KEYS)
            text.append(f"{key}={draws.choice(VALUES)}\n")
    return "".join(text)


def test_random_networks_are_described_or_refused() -> None:
    """100,000 cfgs: each is described, or refused in one sentence, and none takes a second."""
    draws, outcomes = random.Random(13), {"described": 0, "refused": 0}
    slowest = 0.0
    for number in range(CFGS):
        text = written(draws)
        began, said = time.process_time(), ""
        try:
            found = describe(parse_cfg(text, "a.cfg"))
            if number % 50 == 0:
                assert table(found)
            outcomes["described"] += 1
        except PliniusError as refusal:
            outcomes["refused"] += 1
            said = str(refusal)
        assert len(said) < 1500, text
        assert "\n" not in said, text
        slowest = max(slowest, time.process_time() - began)
    assert min(outcomes.values()) > CFGS // 20
    assert slowest < 1


def test_random_text_is_refused() -> None:
    """Bytes of any kind, also without a section, and very long lines."""
    draws = random.Random(14)
    for _ in range(2_000):
        text = "".join(draws.choice("[]=#;,\n\r\t\0 netbach0129.-é\u2028") for _ in range(80))
        with pytest.raises(PliniusError):
            describe(parse_cfg(text, "a.cfg"))
    for text in (
        "[" * 100_000,
        "[net]\n" + "a" * 500_000 + "=1\n",
        "[net]\nbatch=" + "9" * 500_000,
    ):
        with pytest.raises(PliniusError):
            describe(parse_cfg(text, "a.cfg"))


def test_networks_that_are_described_can_run() -> None:
    """What is built and small also computes, or is refused where it cannot be trained."""
    draws, ran = random.Random(15), 0
    while ran < 300:
        text = written(draws)
        try:
            cfg = parse_cfg(text, "a.cfg")
            found = describe(cfg)
        except PliniusError:
            continue
        largest = max(max(row.output) for row in found.rows)
        if found.parameters > 100_000 or largest > 4_000 or re.search("1048576", text):
            continue
        net = Network(cfg)
        rows = cfg.net.sub_batch
        if rows > 64:
            continue
        x = torch.rand((rows, *net.input_shape))
        assert len(net.eval()(x)) == rows, text
        try:
            net.require_batch()
            objective, _ = net.train().loss(x, torch.zeros(rows, net.truths))
            if objective.requires_grad:
                objective.backward()
        except PliniusError:
            pass
        ran += 1


def test_random_weights_are_loaded_or_refused(tmp_path: Path) -> None:
    """10,000 files with changed headers, lengths and bytes: the network changes whole or not."""
    net = Network(parse_cfg(SMALL, "a.cfg"))
    save_weights(net, tmp_path / "a", 3)
    whole, draws, loaded = (tmp_path / "a").read_bytes(), random.Random(16), 0
    for _ in range(WEIGHTS):
        data = bytearray(whole)
        for _ in range(draws.randrange(1, 4)):
            data[draws.randrange(len(data))] = draws.randrange(256)
        if draws.random() < 0.3:
            numbers = [draws.choice((0, 1, 2, 1001, -1, 2**31 - 1)) for _ in range(3)]
            data[:12] = struct.pack("<iii", *numbers)
        if draws.random() < 0.3:
            data = data[: draws.randrange(len(data))]
        if draws.random() < 0.2:
            data += draws.randbytes(draws.randrange(64))
        before = {name: array.clone() for name, array in net.state_dict().items()}
        try:
            load_weights_bytes(net, bytes(data), "a", draws.choice((None, None, 1, 3, 9)))
            loaded += 1
        except PliniusError:
            assert all(torch.equal(net.state_dict()[name], it) for name, it in before.items())
        assert all(bool(torch.isfinite(array).all()) for array in net.parameters())
    assert loaded > 100
