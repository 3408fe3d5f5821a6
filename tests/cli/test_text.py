"""Texts: sealed, trained on in their order, tested, and written by the network."""

from pathlib import Path

import numpy as np
import pytest

from cli.world import World, call, digest_of
from plinius.training.sampler import Streams

WORD = "seal, open & go. "
CFG = """[net]
batch=8
subdivisions=2
time_steps=16
inputs=256
learning_rate=%s
momentum=0.9
decay=0
[%s]
output=48
%s
[connected]
output=256
activation=linear
[softmax]
"""
KINDS = {"rnn": "activation=tanh", "gru": "tanh=1", "lstm": "batch_normalize=0"}
RATES = {"rnn": 0.1, "gru": 0.5, "lstm": 0.5}


@pytest.fixture
def text(world: World, tmp_path: Path) -> Path:
    """A sealed text that repeats itself."""
    (tmp_path / "text.txt").write_text(WORD * 64)
    out = tmp_path / "text.sealed"
    source = ["--text", tmp_path / "text.txt", "--sequence", 16]
    told = call("seal", "--key", world.key, "-o", out, *source)
    assert "plinius train takes it with time_steps=16 and inputs=256" in told.stderr
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_learned_and_written(kind: str, world: World, text: Path, tmp_path: Path) -> None:
    """Every recurrent layer learns a text by heart, resumed in between, and writes it on."""
    cfg = tmp_path / "net.cfg"
    cfg.write_text(CFG % (RATES[kind], kind, KINDS[kind]))
    using = ["--region", tmp_path / "region", "--key", world.key]
    whole = ["--region", tmp_path / "whole", "--key", world.key]
    data = ["--data", text]
    for iterations in (4, 10, 90):
        told = call("train", cfg, *data, *using, "--iterations", iterations, "--threads", 1)
        assert told.code == 0, told.stderr
        if iterations == 10:
            call("train", cfg, *data, *whole, "--iterations", 10, "--threads", 1)
            digests = [digest_of(tmp_path / name, world.key) for name in ("whole", "region")]
            assert digests[0] == digests[1]
    tested = call("test", cfg, *data, *using, "--json").json
    assert (tested["task"], tested["samples"]) == ("tokens", 67)
    assert tested["accuracy"] > 0.8 and tested["bits_per_token"] < 1.5
    asked = ["--begin", WORD[:9], "--length", 40, "--temperature", 0.2, "--json"]
    written = call("generate", cfg, *using, *asked).json["text"]
    assert written == (WORD * 3)[9:49]
    assert call("generate", cfg, *using, *asked).json["text"] == written


def test_pieces_of_a_text_follow_each_other() -> None:
    """In each place of a pass, from pass to pass and iteration to iteration; round at the end."""
    streams = Streams(10, 2, 3)
    passes = np.concatenate([streams.indices(i).reshape(3, 2) for i in range(4)])
    assert passes[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert passes[:, 1].tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6]


def test_what_is_no_network_of_bytes_is_refused(
    world: World, text: Path, tmp_path: Path, trained: Path
) -> None:
    """Fewer inputs than tokens, another length, and writing with another network."""
    cfg = tmp_path / "net.cfg"
    cfg.write_text(CFG.replace("inputs=256", "inputs=64") % (0.1, "rnn", ""))
    using = ["--data", text, "--key", world.key, "--region", tmp_path / "region"]
    refused = call("train", cfg, *using, "--iterations", 2)
    assert "but the network knows 64. Give inputs" in refused.stderr
    cfg.write_text(CFG.replace("steps=16", "steps=8") % (0.1, "rnn", ""))
    refused = call("train", cfg, *using, "--iterations", 2)
    assert "but the network's input is 8 x 256" in refused.stderr
    wrong = call("generate", world.cfg, "--region", trained, "--key", world.key)
    assert wrong.code == 1 and "is no network that predicts bytes" in wrong.stderr
