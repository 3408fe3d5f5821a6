"""Links, FIFOs, folders and devices where a file is read or made: one sentence, at once.

What a link names is never written to. A name that is read may be a link to a regular file.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.world import CFG, World, call
from plinius.darknet.cfg import parse_cfg, read_cfg
from plinius.darknet.network import Network
from plinius.darknet.weights import load_weights, save_weights
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import PliniusError
from plinius.integrations.distributed_checkpoint import RegionStorage
from plinius.key_file import load_key
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import newest_snapshot
from plinius.sources.folder import ImageOptions, folder_source
from plinius.sources.idx import idx_source
from plinius.sources.labelled_boxes import BoxOptions, boxes_source
from plinius.sources.npz import npz_source
from plinius.sources.original_plinius import legacy_source
from plinius.training.metrics import metrics_file, tensorboard
from plinius.training.safetensors_files import export_safetensors, import_safetensors
from unit.mirroring import KEY

PRECIOUS = b"precious\n"
SECONDS = 30  # far more than a refusal takes


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link_to_file(path: Path) -> None:
    path.symlink_to(path.parent / "precious")


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_null(path: Path) -> None:
    path.symlink_to("/dev/null")


Plant = Callable[[Path], None]
PLANTS: list[Plant] = [
    fifo, folder, link_to_file, link_to_nothing, link_to_itself, link_to_zeros, link_to_null,
]  # fmt: skip

Command = Callable[[World, Path, Path], list[object]]
"""The arguments of a command for the world, a region of its own, and the planted path."""


def bench(name: str, option: str) -> Command:
    def made(w: World, _: Path, p: Path) -> list[object]:
        given = {"--cfg": w.cfg, "--data": w.data, "--key": w.key} | {option: p}
        if name == "overhead":
            given = {"--cfg": p}
        return ["bench", name, "--short", *(word for pair in given.items() for word in pair)]

    return made


READS: dict[str, Command] = {
    "seal key": lambda w, _, p: ["seal", "--key", p, "-o", p.parent / "o", "--images", w.images],
    "seal images": lambda w, _, p: ["seal", "--key", w.key, "-o", p.parent / "o", "--images", p],
    "seal labels": lambda w, _, p: ["seal", "--key", w.key, "-o", p.parent / "o", "--labels", p],
    "seal npz": lambda w, _, p: ["seal", "--key", w.key, "-o", p.parent / "o", "--npz", p],
    "seal folder": lambda w, _, p: ["seal", "--key", w.key, "-o", p.parent / "o", "--folder", p],
    "seal plinius": lambda w, _, p: [
        "seal", "--key", w.key, "-o", p.parent / "o", "--format", "plinius", "--images", p,
        "--legacy-key", "00" * 16],
    "inspect": lambda _, __, p: ["inspect", p],
    "train cfg": lambda w, r, p: ["train", p, *w.train(r)[2:]],
    "train data": lambda w, _, p: w.train(p.parent / "r", "--data", p),
    "train region": lambda w, _, p: w.train(p),
    "train key": lambda w, r, p: w.train(r, "--key", p),
    "train weights": lambda w, r, p: w.train(r, "--weights", p),
    "test cfg": lambda w, r, p: ["test", p, "--data", w.held_out, "--region", r, "--key", w.key],
    "test data": lambda w, r, p: ["test", w.cfg, "--data", p, "--region", r, "--key", w.key],
    "test region": lambda w, _, p: [
        "test", w.cfg, "--data", w.held_out, "--region", p, "--key", w.key],
    "digest region": lambda w, _, p: ["digest", "--region", p, "--key", w.key],
    "digest key": lambda _, r, p: ["digest", "--region", r, "--key", p],
    "export cfg": lambda w, r, p: [
        "export", p, "--region", r, "--key", w.key, "-o", p.parent / "o.weights"],
    "export region": lambda w, _, p: [
        "export", "--region", p, "--key", w.key, "-o", p.parent / "o.safetensors"],
    "region info": lambda _, __, p: ["region", "info", p],
    "region verify": lambda _, __, p: ["region", "verify", p],
    "region verify key": lambda _, r, p: ["region", "verify", r, "--key", p],
    "doctor": lambda _, __, p: ["doctor", p],
    "bench cfg": bench("overhead", "--cfg"),
    "bench data": bench("iteration", "--data"),
    "bench key": bench("iteration", "--key"),
}  # fmt: skip
"""Every command that reads a file, and as which option. `train` may make a region of that name."""

WRITES: dict[str, tuple[Command, str]] = {
    "keygen": (lambda _, __, p: ["keygen", "-o", p], "p"),
    "seal": (lambda w, _, p: ["seal", "--key", w.key, "-o", p, "--images", w.images], "p"),
    "train region": (lambda w, _, p: w.train(p), "p"),
    "train creating": (lambda w, _, p: w.train(p.with_suffix("")), "p.creating"),
    "train metrics": (lambda w, _, p: w.train(p.parent / "r", "--metrics", p), "p"),
    "train tensorboard": (lambda w, _, p: w.train(p.parent / "r", "--tensorboard", p), "p"),
    "export weights": (
        lambda w, r, p: ["export", w.cfg, "--region", r, "--key", w.key, "-o", p], "p.weights"),
    "export safetensors": (
        lambda w, r, p: ["export", "--region", r, "--key", w.key, "-o", p], "p.safetensors"),
    "bench plot": (lambda _, __, p: ["bench", "sps", "--seconds", "0.01", "--plot", p], "p.png"),
    "bench all": (lambda w, r, p: [*bench("all", "--key")(w, r, w.key), "-o", p], "p"),
    "bench page": (
        lambda w, r, p: [*bench("all", "--key")(w, r, w.key), "-o", p.parent], "report.html"),
}  # fmt: skip
"""Every command that makes a file, and the name at which something is planted."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A test that waits, for a FIFO say, fails."""

    def on_alarm(*_: object) -> None:
        raise AssertionError(f"still waiting after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def spot(tmp_path: Path) -> Path:
    """A folder with a file that must stay as it is."""
    (tmp_path / "spot").mkdir()
    (tmp_path / "spot" / "precious").write_bytes(PRECIOUS)
    return tmp_path / "spot"


def check(spot: Path, planted: Path, before: os.stat_result) -> None:
    """What was planted is there, and nothing was written through it."""
    assert os.path.samestat(planted.lstat(), before)
    assert (spot / "precious").read_bytes() == PRECIOUS
    assert not (spot / "nothing").exists()
    assert not planted.is_dir() or not list(planted.iterdir())


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("what", READS)
def test_a_command_reads_regular_files_only(
    what: str, plant: Plant, world: World, trained: Path, spot: Path
) -> None:
    """Exit 1, one sentence that names the path, and nothing is made."""
    planted = spot / "planted"
    plant(planted)
    before, names = planted.lstat(), sorted(os.listdir(spot))
    told = call(*READS[what](world, trained, planted))
    assert told.code == 1, told
    assert told.stdout == ""
    assert told.stderr.count("plinius: ") == 1
    assert str(planted) in told.stderr or planted.name in told.stderr
    check(spot, planted, before)
    assert sorted(os.listdir(spot)) == names


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", ["class/x.png", "class"])
def test_what_is_in_a_folder_of_images_is_no_exception(name: str, plant: Plant, spot: Path) -> None:
    """An image, or the folder of a class."""
    planted = spot / "images" / name
    planted.parent.mkdir(parents=True)
    plant(planted)  # a link to a file is one to nothing here
    with pytest.raises(PliniusError, match=f"{spot}/images"):
        folder_source(spot / "images")


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("what", WRITES)
def test_a_command_writes_through_nothing(
    what: str, plant: Plant, world: World, trained: Path, spot: Path
) -> None:
    """Exit 1 and one sentence; only a folder for TensorBoard or for figures is taken as it is."""
    command, name = WRITES[what]
    if what in ("train tensorboard", "bench all") and plant is folder:
        pytest.skip("a folder is what it wants")
    planted = spot / name
    plant(planted)
    before = planted.lstat()
    told = call(*command(world, trained, planted))
    assert told.code == 1, told
    assert told.stdout == ""
    assert told.stderr.count("plinius: ") == 1
    check(spot, planted, before)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("what", ["keygen", "seal", "export weights", "export safetensors"])
def test_what_is_in_the_place_of_a_part_is_replaced(
    what: str, plant: Plant, world: World, trained: Path, spot: Path
) -> None:
    """Only a folder is not: it is refused."""
    command, name = WRITES[what]
    planted = spot / f"{name}.part"
    plant(planted)
    told = call(*command(world, trained, spot / name))
    assert told.code == (plant is folder), told
    assert (spot / "precious").read_bytes() == PRECIOUS
    assert not (spot / "nothing").exists()
    assert (spot / name).exists() != (plant is folder)
    assert planted.is_dir() == (plant is folder)


NETWORK = Network(parse_cfg(CFG, "small.cfg"))
LIBRARY: dict[str, Callable[[Path], Any]] = {
    "load_key": load_key,
    "OwnerKey.save": KEY.save,
    "read_cfg": read_cfg,
    "load_weights": lambda p: load_weights(NETWORK, p),
    "save_weights": lambda p: save_weights(NETWORK, p, 1),
    "import_safetensors": lambda p: import_safetensors(NETWORK, p),
    "export_safetensors": lambda p: export_safetensors(newest_snapshot(p, KEY), "model", p),
    "SealedDataset": lambda p: SealedDataset.from_file(p, KEY),
    "seal_dataset": lambda p: seal_dataset(idx_source(p, None), KEY, p),
    "newest_snapshot": lambda p: newest_snapshot(p, KEY),
    "Mirror.open": lambda p: Mirror.open(p, KEY, {"n": 1}),
    "RegionStorage": lambda p: RegionStorage(p, KEY),
    "Region.open": Region.open,
    "Region.open to read": lambda p: Region.open(p, writable=False),
    "Region.create": Region.create,
    "Region.open_or_create": Region.open_or_create,
    "idx_source": lambda p: idx_source(p, p),
    "npz_source": npz_source,
    "folder_source": folder_source,
    "boxes_source": lambda p: boxes_source(p, ImageOptions(), BoxOptions()),
    "legacy_source": lambda p: legacy_source(bytes(16), p, p),
    "metrics_file": lambda p: metrics_file(p).__enter__(),
    "tensorboard": lambda p: tensorboard(p, 0).__enter__(),
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("what", LIBRARY)
def test_the_library_uses_regular_files_only(what: str, plant: Plant, spot: Path) -> None:
    """A PliniusError, and what was planted stays as it was."""
    if what == "tensorboard" and plant is folder:
        pytest.skip("a folder is what it wants")
    planted = spot / "planted"
    plant(planted)
    before, handles = planted.lstat(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(PliniusError):
        LIBRARY[what](planted)
    check(spot, planted, before)
    assert len(os.listdir("/proc/self/fd")) == handles


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\ud800"], ids=["zero", "only zero", "surrogate"])
@pytest.mark.parametrize("what", LIBRARY)
def test_what_cannot_be_a_name_is_refused(what: str, name: str, spot: Path) -> None:
    """With a PliniusError that says so, not with a ValueError."""
    with pytest.raises(PliniusError, match=r"cannot be the name of a file\. "):
        LIBRARY[what](spot / name)
    assert os.listdir(spot) == ["precious"]


@pytest.mark.parametrize("name", ["/", "."])
@pytest.mark.parametrize("what", LIBRARY)
def test_a_folder_without_a_name_is_refused(
    what: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no file, and nothing is made in it."""
    if what == "tensorboard":
        pytest.skip("a folder is what it wants")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PliniusError):
        LIBRARY[what](Path(name))
    assert os.listdir(tmp_path) == []


def test_inputs_may_be_links_to_files(world: World, trained: Path, spot: Path) -> None:
    """Whoever keeps keys, data or regions elsewhere names them by a link."""

    def link(path: Path) -> Path:
        named = spot / path.name
        named.symlink_to(path)
        return named

    key, cfg, data, region = map(link, (world.key, world.cfg, world.held_out, trained))
    told = call("test", cfg, "--data", data, "--region", region, "--key", key)
    assert told.code == 0, told.stderr
    images, labels = link(world.images), link(world.labels)
    sealing = call("seal", "--key", key, "-o", spot / "o", "--images", images, "--labels", labels)
    assert sealing.code == 0, sealing.stderr


def test_a_link_in_a_place_of_metrics_is_named_as_one(world: World, spot: Path) -> None:
    """Metrics are appended to a regular file or a new one, with the exact sentence otherwise."""
    metrics = spot / "m"
    metrics.symlink_to(spot / "precious")
    told = call(*world.train(spot / "r", "--iterations", 1, "--metrics", metrics))
    assert told.stderr.splitlines()[-1] == (
        f"plinius: Cannot write metrics to {metrics}: Not a regular file. "
        "Name a file in a folder that you can write to (--metrics)."
    )


def test_a_key_of_another_kind_is_refused(world: World, spot: Path) -> None:
    """The bytes of a key give the sentence that Mirror.open gives."""
    raw: Any = bytes(32)
    Mirror.open(spot / "run.region", KEY, {"n": 1}).close()
    for use in (
        lambda: Mirror.open(spot / "new.region", raw, {"n": 1}),
        lambda: RegionStorage(spot / "new.region", raw),
        lambda: newest_snapshot(spot / "run.region", raw),
        lambda: SealedDataset(lambda at, length: memoryview(b""), 0, raw),
        lambda: seal_dataset(idx_source(world.images, None), raw, spot / "o"),
    ):
        with pytest.raises(PliniusError, match="The key is a bytes, not an owner's key. Load it w"):
            use()
    assert sorted(os.listdir(spot)) == ["precious", "run.region"]
