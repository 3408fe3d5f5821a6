"""Files with other bytes in them, through everything that reads one: only typed refusals."""

import gzip
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from PIL import Image

import plinius.darknet.build
from attacks.mutations import first_seed, flipping, mutated, mutated_text, peak_memory
from cli.world import CFG, textures, write_idx
from plinius.darknet.cfg import parse_cfg, read_cfg
from plinius.darknet.network import Network
from plinius.darknet.weights import load_weights, save_weights
from plinius.data.dataset_extent import load_dataset
from plinius.data.records import ArraySpec, Record, Source
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import PliniusError
from plinius.key_file import load_key
from plinius.pm.region import Region
from plinius.sources.folder import ImageOptions, folder_source
from plinius.sources.idx import idx_source
from plinius.sources.labelled_boxes import BoxOptions, boxes_source
from plinius.sources.npz import npz_source
from plinius.sources.original_plinius import legacy_source
from plinius.training.safetensors_files import import_safetensors
from unit.mirroring import KEY

RECORDS = 6
LEGACY_KEY = bytes(16)


def network() -> Network:
    """A small network; nothing of it changes until a file is loaded."""
    return Network(parse_cfg(CFG, "small.cfg"))


NETWORK = network()


def record(number: int) -> Record:
    """What the sealed dataset holds at an index."""
    return np.full((2, 3), number, np.uint8), np.array(number % 3, np.dtype("<u2"))


def make_key(path: Path) -> None:
    KEY.save(path)


def make_cfg(path: Path) -> None:
    path.write_text(CFG)


def make_weights(path: Path) -> None:
    save_weights(NETWORK, path, 12)


def make_safetensors(path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save({name: it.contiguous() for name, it in NETWORK.state_dict().items()}))


def make_dataset(path: Path) -> None:
    def records() -> Iterator[Record]:
        return map(record, range(RECORDS))

    sample, label = ArraySpec(np.dtype("u1"), (2, 3)), ArraySpec(np.dtype("<u2"), ())
    source = Source("small", RECORDS, sample, label, records, 3, ("ash", "birch", "cedar"))
    seal_dataset(source, KEY, path)


def make_idx(path: Path) -> None:
    write_idx(path, textures(10, seed=1)[0])


def make_gzipped_idx(path: Path) -> None:
    make_idx(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def make_npz(path: Path) -> None:
    x, y = textures(10, seed=1)
    with path.open("wb") as file:
        np.savez(file, x=x, y=y)


def make_compressed_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, x=textures(10, seed=1)[0])


def make_png(path: Path) -> None:
    Image.fromarray(textures(1, seed=1)[0][0]).save(path, "PNG")


def make_jpeg(path: Path) -> None:
    Image.fromarray(textures(1, seed=1)[0][0]).save(path, "JPEG")


def make_legacy(path: Path) -> None:
    """Images as the original sealed them: tag, nonce, ciphertext."""
    raw = np.array([2, 2, 3], "<u4").tobytes()
    for number in range(3):
        nonce = bytes([number] * 12)
        sealed = AESGCM(LEGACY_KEY).encrypt(nonce, np.full(4, number, "<f4").tobytes(), None)
        raw += sealed[-16:] + nonce + sealed[:-16]
    path.write_bytes(raw)


def read_description(path: Path) -> None:
    Network(read_cfg(path))


def read_dataset(path: Path) -> None:
    dataset = SealedDataset.from_file(path, KEY)
    _check(dataset)


def _check(dataset: SealedDataset) -> None:
    """Whatever opens is what was sealed."""
    for number in range(dataset.header.count):
        sample, label = dataset.open_record(number)
        wanted = record(number)
        assert np.array_equal(sample, wanted[0])
        assert label == wanted[1]


def read_images(path: Path) -> None:
    list(folder_source(path.parents[1]))


def make_labels(path: Path) -> None:
    """Two boxes, beside their picture."""
    make_png(path.with_suffix(".png"))
    path.write_text("0 0.5 0.25 0.5 0.25\n2 0.125 0.75 0.2 1e-1\n")


def read_labels(path: Path) -> None:
    """What is sealed are boxes in their picture, or nothing."""
    for _, label in boxes_source(path.parent, ImageOptions(), BoxOptions(4)):
        assert ((label[:, :4] >= 0) & (label[:, :4] <= 1)).all()


Read = Callable[[Path], Any]
KINDS: dict[str, tuple[Read, Read, int]] = {  # made, read, and how many in the long form
    "owner.key": (make_key, load_key, 20_000),
    "small.cfg": (make_cfg, read_description, 20_000),
    "net.weights": (make_weights, lambda path: load_weights(NETWORK, path), 20_000),
    "net.safetensors": (make_safetensors, lambda path: import_safetensors(NETWORK, path), 20_000),
    "train.sealed": (make_dataset, read_dataset, 20_000),
    "images.idx": (make_idx, lambda path: list(idx_source(path, None)), 5_000),
    "images.idx.gz": (make_gzipped_idx, lambda path: list(idx_source(path, None)), 5_000),
    "data.npz": (make_npz, lambda path: list(npz_source(path)), 5_000),
    "small.npz": (make_compressed_npz, lambda path: list(npz_source(path)), 5_000),
    "image.png": (make_png, read_images, 5_000),
    "image.jpg": (make_jpeg, read_images, 5_000),
    "image.txt": (make_labels, read_labels, 5_000),
    "images.bin": (make_legacy, lambda p: list(legacy_source(LEGACY_KEY, p, None)), 5_000),
}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A description may ask for 8 GiB; here what asks for more than 4 MiB is refused."""
    monkeypatch.setattr(plinius.darknet.build, "MAX_PARAMETERS", 2**20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_a_mutated_file_is_read_or_refused(
    name: str, place: Path, request: pytest.FixtureRequest
) -> None:
    """No other exception, no huge memory; a sealed record that opens is the one that was sealed."""
    make, read, many = KINDS[name]
    folder = place / "images" / "class"
    folder.mkdir(parents=True)
    path = folder / name
    make(path)
    whole = path.read_bytes()
    read(path)  # so that what is refused below is refused for its bytes
    text = name in ("owner.key", "small.cfg", "image.txt")
    rng, refusals, before = random.Random(first_seed()), 0, peak_memory()
    rounds = many if request.config.getoption("--soak") else 150
    for number in range(rounds):
        path.unlink()
        path.write_bytes((mutated_text if text else mutated)(whole, rng))
        path.chmod(0o600)
        try:
            read(path)
        except PliniusError:
            refusals += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name}") from error
    assert refusals > rounds // 10
    assert peak_memory() - before < 256 << 20
    print(f"{rounds:,} of {name}: {refusals:,} refusals")


@pytest.mark.parametrize("in_region", [False, True], ids=["file", "region"])
def test_bytes_that_flip_while_a_dataset_is_read(
    in_region: bool, place: Path, request: pytest.FixtureRequest
) -> None:
    """What opens is what was sealed, whoever writes to the file or to the region meanwhile."""
    data, path = place / "train.sealed", place / "copy"
    make_dataset(data)
    if in_region:
        with Region.create(place / "run.region") as region:
            load_dataset(region, data, KEY)
        data = place / "run.region"
    rounds = 2_000 if request.config.getoption("--soak") else 60
    for number in range(rounds):
        path.unlink(missing_ok=True)
        path.write_bytes(data.read_bytes())
        until = time.monotonic() + 60
        with flipping(path, first_seed() + number), pytest.raises(PliniusError):
            with Region.open(path) if in_region else nullcontext() as opened:
                while time.monotonic() < until:  # every byte counts, so that it ends in a refusal
                    if opened:
                        _check(load_dataset(opened, place / "none", KEY))
                    else:
                        read_dataset(path)
