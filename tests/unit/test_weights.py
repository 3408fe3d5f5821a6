"""Darknet .weights files: header variants, bounds, atomic writing."""

import os
import struct
from pathlib import Path

import pytest
import torch

from plinius.darknet.cfg import parse_cfg
from plinius.darknet.network import Network
from plinius.darknet.weights import load_weights, save_weights
from plinius.errors import CfgError, FormatError, StorageError

TEXT = """[net]
batch=4
height=4
width=4
channels=2
[convolutional]
filters=3
size=3
pad=1
batch_normalize=1
[connected]
output=5
batch_normalize=1
[softmax]
"""


def network(seed: int, text: str = TEXT) -> Network:
    """The network of `text`, with drawn weights."""
    built = Network(parse_cfg(text, "a.cfg"), seed=seed)
    with torch.no_grad():
        for layer in built.sequence:
            for array in layer.arrays().values():
                array.uniform_(generator=built.generator)
    return built


def same(one: Network, other: Network) -> bool:
    """Whether both hold the same arrays."""
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_saved_network_loads_again(tmp_path: Path) -> None:
    """Arrays and the seen counter come back, whatever the memory format."""
    one, other = network(1), network(2)
    one.to(memory_format=torch.channels_last)
    save_weights(one, tmp_path / "a.weights", 5_000_000_000)
    assert load_weights(other, tmp_path / "a.weights") == 5_000_000_000
    assert same(one, other)
    assert (tmp_path / "a.weights").stat().st_size == 20 + 4 * one.parameter_count
    assert os.listdir(tmp_path) == ["a.weights"]


@pytest.mark.parametrize(
    ("major", "minor", "counter"), [(0, 1, "<I"), (0, 2, "<Q"), (1, 0, "<Q"), (2, 5, "<Q")]
)
def test_header_versions_have_their_counter(
    major: int, minor: int, counter: str, tmp_path: Path
) -> None:
    """The seen counter has 32 bits before 0.2 and 64 from there on."""
    one, other = network(1), network(2)
    save_weights(one, tmp_path / "a", 9)
    data = (tmp_path / "a").read_bytes()
    head = struct.pack("<iii", major, minor, 0) + struct.pack(counter, 123)
    (tmp_path / "a").write_bytes(head + data[20:])
    assert load_weights(other, tmp_path / "a") == 123
    assert same(one, other)


def test_short_long_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A file of another length or kind is refused, and the network stays as it was."""
    one, other = network(1), network(2)
    save_weights(one, tmp_path / "a", 9)
    data = (tmp_path / "a").read_bytes()
    for bad in (data[:-1], data[:-4], data + b"\0", data[:21], data[:13], data[:3], b""):
        (tmp_path / "b").write_bytes(bad)
        with pytest.raises(FormatError):
            load_weights(other, tmp_path / "b")
    (tmp_path / "b").write_bytes(b"\xff" * len(data))
    with pytest.raises(FormatError, match=r"is not a \.weights file"):
        load_weights(other, tmp_path / "b")
    assert same(other, network(2))


def test_layers_can_stay_out_of_the_file(tmp_path: Path) -> None:
    """dontsave leaves a layer out, dontload and dontloadscales keep the network's own values."""
    one = network(1, TEXT.replace("output=5", "output=5\ndontsave=1"))
    save_weights(one, tmp_path / "a", 1)
    other = network(2, TEXT.replace("output=5", "output=5\ndontload=1"))
    load_weights(other, tmp_path / "a")
    assert torch.equal(other.layers[0].weights, one.layers[0].weights)
    assert torch.equal(other.layers[1].weights, network(2).layers[1].weights)

    plain = network(3, TEXT.replace("batch_normalize=1\n", ""))
    save_weights(plain, tmp_path / "b", 1)
    scaled = network(
        4, TEXT.replace("batch_normalize=1\n", "batch_normalize=1\ndontloadscales=1\n")
    )
    load_weights(scaled, tmp_path / "b")
    assert torch.equal(scaled.layers[0].weights, plain.layers[0].weights)
    assert torch.equal(scaled.layers[0].scales, network(4).layers[0].scales)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file that is cut short, and no part of one."""

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        save_weights(network(2), tmp_path / "a", 2)
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    """Exporting never writes over anything."""
    save_weights(network(1), tmp_path / "a", 1)
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        save_weights(network(2), tmp_path / "a", 2)
    assert (tmp_path / "a").read_bytes() == before


def test_absent_places_are_refused(tmp_path: Path) -> None:
    """Neither reading nor writing raises a bare OSError."""
    with pytest.raises(StorageError, match="Cannot read"):
        load_weights(network(1), tmp_path / "absent")
    with pytest.raises(StorageError, match="Cannot write"):
        save_weights(network(1), tmp_path / "absent" / "a", 1)


def test_a_short_file_is_refused_with_its_layer(tmp_path: Path) -> None:
    """The layer, the array and the numbers are named; a whole number of layers suggests --upto."""
    one = network(1)
    save_weights(one, tmp_path / "a", 0)
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(raw[:-4])
    what = f"has {len(raw) - 4} bytes, but this network needs {len(raw)}: it ends after 16 of 20"
    with pytest.raises(
        FormatError, match=f"{what} bytes of rolling_variance of layer 1 .connected"
    ):
        load_weights(one, tmp_path / "b")
    (tmp_path / "c").write_bytes(raw + b"1234")
    with pytest.raises(FormatError, match=f"needs {len(raw)}: 4 more"):
        load_weights(one, tmp_path / "c")
    save_weights(one, tmp_path / "d", 7, upto=1)
    with pytest.raises(FormatError, match=r"say that it holds 1 layers \(--upto 1\)"):
        load_weights(one, tmp_path / "d")


def test_the_first_layers_load_alone(tmp_path: Path) -> None:
    """A file of the layers before `upto` fills these, and leaves the others as they are."""
    one, two = network(1), network(2)
    save_weights(one, tmp_path / "a", 7, upto=1)
    before = two.layers[1].weights.clone()
    assert load_weights(two, tmp_path / "a", upto=1) == 7
    assert torch.equal(two.layers[0].weights, one.layers[0].weights)
    assert torch.equal(two.layers[1].weights, before)
    for wrong in (0, 4):
        with pytest.raises(FormatError, match=f"has 3 layers, not {wrong}"):
            load_weights(two, tmp_path / "a", upto=wrong)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """The array that holds one is named, and the network keeps its own."""
    one, two = network(1), network(2)
    with torch.no_grad():
        one.layers[1].weights[2, 3] = float("nan")
    save_weights(one, tmp_path / "a", 0)
    before = two.layers[0].weights.clone()
    at = 2 * 48 + 3
    with pytest.raises(FormatError, match=f"not finite: value {at} of weights of layer 1 "):
        load_weights(two, tmp_path / "a")
    assert torch.equal(two.layers[0].weights, before)


@pytest.mark.parametrize("flipped", [0, 1])
def test_numload_fills_the_first_filters(flipped: int, tmp_path: Path) -> None:
    """A file of a layer with fewer filters fills as many; the others keep what they were drawn."""
    few = TEXT.replace("filters=3", f"filters=2\nflipped={flipped}").partition("[connected]")[0]
    many = few.replace("filters=2", "filters=3\nnumload=2")
    one, two = network(1, few + "[softmax]\n"), network(2, many + "[softmax]\n")
    save_weights(one, tmp_path / "a", 0)
    raw = (tmp_path / "a").read_bytes()
    if flipped:  # files store what the original transposes after reading
        head, weights = raw[:-144], torch.tensor(struct.unpack("<36f", raw[-144:]))
        raw = head + weights.reshape(2, 18).T.contiguous().numpy().tobytes()
        (tmp_path / "a").write_bytes(raw)
    last = two.layers[0].weights[2].clone()
    load_weights(two, tmp_path / "a")
    assert torch.equal(two.layers[0].weights[:2], one.layers[0].weights)
    assert torch.equal(two.layers[0].scales[:2], one.layers[0].scales)
    assert torch.equal(two.layers[0].weights[2], last)
    with pytest.raises(CfgError, match="numload is for"):
        network(1, TEXT.replace("output=5", "output=5\nnumload=1"))


def test_parts_of_recurrent_layers_have_darknets_order(tmp_path: Path) -> None:
    """Input, self, output; wz wr wh uz ur uh; wi wf wo wg ui uf uo ug; read back byte for byte."""
    text = "[net]\nbatch=2\ntime_steps=3\nheight=2\nwidth=2\nchannels=1\n"
    text += "[crnn]\noutput_filters=2\nbatch_normalize=1\n[rnn]\noutput=2\n[gru]\noutput=3\n"
    text += "[lstm]\noutput=2\nbatch_normalize=1\n[softmax]\n"
    one, two = network(1, text), network(2, text)
    parts = [[name for name, _ in layer.parts()] for layer in one.sequence]
    assert parts[:2] == [["input", "self", "output"]] * 2
    assert parts[2:4] == [
        ["wz", "wr", "wh", "uz", "ur", "uh"],
        ["wi", "wf", "wo", "wg", "ui", "uf", "uo", "ug"],
    ]
    first = list(one.sequence[0].arrays())[:5]
    arrays = ("biases", "scales", "rolling_mean", "rolling_variance", "weights")
    assert first == [f"input.{name}" for name in arrays]
    save_weights(one, tmp_path / "a", 5)
    assert load_weights(two, tmp_path / "a") == 5
    save_weights(two, tmp_path / "b", 5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert same(one, two)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """A FIFO would keep the reader waiting for ever."""
    os.mkfifo(tmp_path / "a")
    with pytest.raises(StorageError):
        load_weights(network(1), tmp_path / "a")
