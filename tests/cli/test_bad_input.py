"""Bad input: the exact sentence and a next step on stderr, exit 1, and nothing lost or left."""

import hashlib
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.world import (
    CFG,
    CLASSES,
    ITERATIONS,
    RECORDS,
    Told,
    World,
    call,
    digest_of,
    memory_folder,
    mounted,
    run,
    textures,
    tree,
    write_idx,
)
from plinius.keys import load_key
from plinius.mirror import newest_snapshot
from plinius.pm.region import Region

GIVE_ITS_RUN = "Give what that run began with, or name another region (--region)."
GIVE_ITS_KEY = "Give the key file it was sealed with (--key)."


@dataclass(frozen=True)
class Place:
    """A folder to make bad input in, beside the small world and a copy of the trained region."""

    world: World
    folder: Path

    @property
    def region(self) -> Path:
        """A region whose run is at its end."""
        return self.folder / "run.region"

    def file(self, name: str, content: bytes | str) -> Path:
        """A file with this content."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def cfg(self, *changes: tuple[str, str], more: str = "") -> Path:
        """The small cfg with changes."""
        text = CFG + more
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        return self.file("other.cfg", text)

    def idx(self, name: str, count: int) -> Path:
        """Images (or labels, by name) of some records, as IDX."""
        x, y = textures(count, seed=7)
        write_idx(self.folder / name, y if name == "labels" else x)
        return self.folder / name

    def id_of(self, key: Path) -> str:
        """The public id of a key."""
        return load_key(key).id.hex()

    def train(self, *more: object, **instead: object) -> list[object]:
        """The arguments that train the region's run, with some named differently."""
        names = {"cfg": self.world.cfg, "data": self.world.data, "region": self.region}
        names |= {"key": self.world.key} | instead
        options = [
            part for name in ("data", "region", "key") for part in (f"--{name}", names[name])
        ]
        return ["train", names["cfg"], *options, "--threads", 1, *more]

    def read(self, command: str, *more: object, **instead: object) -> list[object]:
        """The arguments of digest, test or export on the region."""
        region, key = instead.get("region", self.region), instead.get("key", self.world.key)
        return [command, *more, "--region", region, "--key", key]

    def seal(self, *source: object, out: str = "out.sealed", key: object = None) -> list[object]:
        """The arguments that seal a source."""
        return ["seal", "--key", key or self.world.key, "-o", self.folder / out, *source]


@pytest.fixture
def place(world: World, trained: Path, tmp_path: Path) -> Place:
    """A fresh place with a copy of the trained region."""
    shutil.copy(trained, tmp_path / "run.region")
    return Place(world, tmp_path)


Case = Callable[[Place], tuple[list[object], str]]
CASES: list[Case] = []


def case(made: Case) -> Case:
    """Enter a bad input into the table: it gives the arguments and the sentence to expect."""
    CASES.append(made)
    return made


# Keys


@case
def wrong_key_for_the_region(p: Place) -> tuple[list[object], str]:
    """Both ids are told, neither key is."""
    key = p.world.other_key
    return p.train(key=key), (
        f"The mirror in {p.region} was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def wrong_key_for_the_dataset(p: Place) -> tuple[list[object], str]:
    """A dataset of another owner starts no run, and no region is made for it."""
    key = p.world.other_key
    return p.train(key=key, region=p.folder / "new.region"), (
        f"train.sealed was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def wrong_key_for_the_digest(p: Place) -> tuple[list[object], str]:
    """Reading takes the right key as well."""
    key = p.world.other_key
    return p.read("digest", key=key), (
        f"The mirror in {p.region} was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def wrong_key_for_verify(p: Place) -> tuple[list[object], str]:
    """And so does proving."""
    key = p.world.other_key
    return ["region", "verify", p.region, "--key", key], (
        f"The mirror in {p.region} was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def key_others_can_read(p: Place) -> tuple[list[object], str]:
    """Loose permissions are refused before the key is used."""
    key = p.file("loose.key", p.world.key.read_bytes())
    key.chmod(0o640)
    return p.train(key=key), (
        f"Others can read the key file {key} (mode 0640). Run chmod 600 {key}, and make a new key "
        "if others may have read it."
    )


@case
def key_missing(p: Place) -> tuple[list[object], str]:
    """No key file."""
    return p.read("digest", key=p.folder / "no.key"), (
        f"Cannot read the key file {p.folder / 'no.key'}: No such file or directory. "
        "Name a key file made by plinius keygen."
    )


@case
def key_is_something_else(p: Place) -> tuple[list[object], str]:
    """Another file in place of a key; what is in it is not shown."""
    key = p.file("note.txt", "plinius-owner-key-1 beef\n")
    key.chmod(0o600)
    return p.train(key=key), (
        f"{key} holds no owner's key. Name a key file made by plinius keygen."
    )


@case
def key_would_be_overwritten(p: Place) -> tuple[list[object], str]:
    """keygen never overwrites."""
    key = p.file("owner.key", p.world.key.read_bytes())
    return ["keygen", "-o", key], (
        f"{key} exists already, and overwriting a key would lose all data sealed with it. "
        "Choose another name with -o."
    )


@case
def key_in_no_folder(p: Place) -> tuple[list[object], str]:
    """keygen into a folder that is not there."""
    key = p.folder / "no" / "owner.key"
    return ["keygen", "-o", key], (
        f"Cannot create {key}: No such file or directory. Choose a folder you can write to."
    )


# Sources of data


@case
def counts_differ(p: Place) -> tuple[list[object], str]:
    """Images and labels of different counts."""
    images, labels = p.idx("images", 10), p.idx("labels", 9)
    return p.seal("--images", images, "--labels", labels), (
        f"{images} holds 10 samples, but {labels} 9 labels. Give files that belong together."
    )


@case
def image_of_another_size(p: Place) -> tuple[list[object], str]:
    """One image in a folder differs: nothing half-sealed is left."""
    (p.folder / "pictures" / "a").mkdir(parents=True)
    for name, side in (("1.png", 8), ("2.png", 9)):
        Image.new("L", (side, 8)).save(p.folder / "pictures" / "a" / name)
    return p.seal("--folder", p.folder / "pictures"), (
        f"{p.folder}/pictures/a/2.png has 9 x 8 pixels in greyscale, but the first image 8 x 8 "
        "pixels in greyscale. Bring all images to one size and mode."
    )


@case
def picture_that_is_none(p: Place) -> tuple[list[object], str]:
    """A file that only bears the name of a picture."""
    (p.folder / "pictures" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(p.folder / "pictures" / "a" / "1.png")
    p.file("pictures/a/2.txt", "hello")
    return p.seal("--folder", p.folder / "pictures"), (
        f"{p.folder}/pictures/a/2.txt is neither PNG nor JPEG. Convert it or move it away."
    )


@case
def folder_without_classes(p: Place) -> tuple[list[object], str]:
    """Pictures that lie in no class folder."""
    (p.folder / "pictures").mkdir()
    Image.new("L", (8, 8)).save(p.folder / "pictures" / "1.png")
    return p.seal("--folder", p.folder / "pictures"), (
        f"{p.folder}/pictures is not a folder of class folders. Put the images of each class into "
        "a folder named after it, and nothing else."
    )


@case
def idx_truncated(p: Place) -> tuple[list[object], str]:
    """An IDX file shorter than it declares."""
    images = p.idx("images", 10)
    images.write_bytes(images.read_bytes()[:-1])
    return p.seal("--images", images, "--labels", p.idx("labels", 10)), (
        f"{images} is truncated: its header declares 656 bytes, but the file has 655. "
        "Fetch it again."
    )


@case
def idx_foreign(p: Place) -> tuple[list[object], str]:
    """Another kind of file in place of IDX."""
    images = p.file("images", b"\x89PNG\r\n\x1a\n" + bytes(100))
    return p.seal("--images", images, "--labels", p.idx("labels", 10)), (
        f"{images} is not an IDX file. Check that it is the right file."
    )


@case
def npz_without_x(p: Place) -> tuple[list[object], str]:
    """An archive without the array of samples."""
    np.savez(p.folder / "d.npz", images=np.zeros((2, 2)))
    return p.seal("--npz", p.folder / "d.npz"), (
        f"{p.folder}/d.npz has no array named x. Save it with numpy.savez(path, x=, y=)."
    )


@case
def npz_of_objects(p: Place) -> tuple[list[object], str]:
    """An array that only a pickle could give is not read."""
    np.savez(p.folder / "d.npz", x=np.array([{}, {}], object))
    return p.seal("--npz", p.folder / "d.npz"), (
        f"Array x of {p.folder}/d.npz is not an array of plain numbers. "
        "Check that it is the right file."
    )


@case
def label_beyond_the_classes(p: Place) -> tuple[list[object], str]:
    """A label that is no class is found while sealing; nothing half-sealed is left."""
    labels = p.idx("labels", 10)
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x09")
    return p.seal("--images", p.idx("images", 10), "--labels", labels, "--classes", CLASSES), (
        f"The label of record 9 of {p.folder}/images is 9, but there are 4 classes. "
        "Number the classes from 0, or correct the number of classes."
    )


@case
def sealed_would_be_overwritten(p: Place) -> tuple[list[object], str]:
    """seal never overwrites."""
    out = p.file("out.sealed", p.world.data.read_bytes())
    return p.seal("--images", p.idx("images", 10), "--labels", p.idx("labels", 10)), (
        f"{out} exists already. Choose another name, or remove it first."
    )


@case
def original_with_the_wrong_key(p: Place) -> tuple[list[object], str]:
    """The original's format under another key: the record is named, nothing is left."""
    labels = p.file("labels.bin", struct.pack("<I", 2) + bytes(2 * (28 + 40)))
    how = ["--format", "plinius", "--legacy-key", "00" * 16, "--labels", labels]
    return p.seal(*how), (
        f"Label 0 of {labels} does not open with this key. It was altered, is in the wrong place, "
        "or was sealed with another key; fetch it again from its owner."
    )


# Sealed datasets


@case
def dataset_missing(p: Place) -> tuple[list[object], str]:
    """A new run without its dataset makes no region."""
    return p.train(data=p.folder / "no.sealed", region=p.folder / "new.region"), (
        f"Cannot read {p.folder}/no.sealed: No such file or directory. "
        "Name a sealed dataset that can be read."
    )


@case
def dataset_truncated(p: Place) -> tuple[list[object], str]:
    """A sealed dataset cut short makes no region."""
    whole = p.world.data.read_bytes()
    data = p.file("cut.sealed", whole[:-1])
    return p.train(data=data, region=p.folder / "new.region"), (
        f"cut.sealed has {len(whole) - 1} bytes, but its header declares {len(whole)}: it was "
        "truncated. Fetch it again from its owner."
    )


@case
def dataset_cut_in_its_header(p: Place) -> tuple[list[object], str]:
    """A sealed dataset of a few bytes."""
    data = p.file("cut.sealed", p.world.data.read_bytes()[:40])
    return ["inspect", data], (
        f"{data} is truncated: it ends within the header. Fetch it again from its owner."
    )


@case
def dataset_foreign(p: Place) -> tuple[list[object], str]:
    """Plain data in place of a sealed dataset."""
    return p.train(data=p.world.images, region=p.folder / "new.region"), (
        "images.idx is not a sealed dataset. Make one with plinius seal."
    )


@case
def dataset_of_the_future(p: Place) -> tuple[list[object], str]:
    """A sealed dataset of a later version."""
    raw = bytearray(p.world.data.read_bytes())
    raw[8:12] = struct.pack("<I", 2)
    data = p.file("next.sealed", bytes(raw))
    return p.train(data=data, region=p.folder / "new.region"), (
        "next.sealed is a sealed dataset of version 2, this program reads 1. "
        "Use the program that made it, or a newer one."
    )


@case
def dataset_header_altered(p: Place) -> tuple[list[object], str]:
    """One bit of the class count, which only the key can tell."""
    raw = bytearray(p.world.data.read_bytes())
    raw[80] ^= 1
    data = p.file("bent.sealed", bytes(raw))
    assert call("inspect", data, "--json").json["classes"] == CLASSES ^ 1
    return p.train(data=data, region=p.folder / "new.region"), (
        "The header of bent.sealed does not open with this key. It was altered, is in the wrong "
        "place, or was sealed with another key; fetch it again from its owner."
    )


@case
def inspected_file_foreign(p: Place) -> tuple[list[object], str]:
    """inspect on a file that is none of ours."""
    return ["inspect", p.world.cfg], (
        f"{p.world.cfg} is neither a sealed dataset nor a region. "
        "Name a file made by plinius seal or plinius train."
    )


@case
def inspected_file_missing(p: Place) -> tuple[list[object], str]:
    """inspect on nothing."""
    return ["inspect", p.folder / "none"], (
        f"Cannot read {p.folder}/none: No such file or directory. Name a file that can be read."
    )


# Networks


@case
def cfg_missing(p: Place) -> tuple[list[object], str]:
    """No cfg."""
    return p.train(cfg=p.folder / "no.cfg"), (
        f"{p.folder}/no.cfg cannot be read: No such file or directory. Give a .cfg file."
    )


@case
def cfg_of_another_input(p: Place) -> tuple[list[object], str]:
    """A network whose input the samples do not fill makes no region."""
    cfg = p.cfg(("height=8", "height=9"))
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        "The samples of train.sealed are 1 x 8 x 8, but the network's input is 1 x 9 x 8. "
        "Mend height, width and channels (or inputs) in [net], or name another dataset."
    )


@case
def cfg_of_fewer_outputs(p: Place) -> tuple[list[object], str]:
    """A network with fewer outputs than the data has classes makes no region."""
    cfg = p.cfg(("filters=4", "filters=3"))
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        "The labels of train.sealed have 4 classes, but the network's output has 3. "
        "Give the network's last layer as many outputs as there are classes."
    )


@case
def cfg_with_an_unknown_section(p: Place) -> tuple[list[object], str]:
    """The place and the sections known."""
    cfg = p.cfg(more="\n[transformer]\nheads=8\n")
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg}:{len(CFG.splitlines()) + 2}: '[transformer]' is not a section. Supported: [net], "
        "[convolutional], [connected], [maxpool], [avgpool], [dropout], [softmax], [cost]."
    )


@case
def cfg_with_a_bad_value(p: Place) -> tuple[list[object], str]:
    """The place, the value and the rule."""
    cfg = p.cfg(("probability=.3", "probability=1.3"))
    line = CFG.splitlines().index("probability=.3") + 1
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg}:{line}: [dropout] probability='1.3'. probability needs a number from 0 to 0.999."
    )


@case
def cfg_error_on_line_100(p: Place) -> tuple[list[object], str]:
    """A line number stays a line number, whatever a console makes of :100: elsewhere."""
    cfg = p.file("long.cfg", CFG + "#\n" * (99 - len(CFG.splitlines())) + "[transformer]\n")
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg}:100: '[transformer]' is not a section. Supported: [net], [convolutional], "
        "[connected], [maxpool], [avgpool], [dropout], [softmax], [cost]."
    )


@case
def cfg_without_an_end(p: Place) -> tuple[list[object], str]:
    """No max_batches and no --iterations: refused before a region is made."""
    cfg = p.cfg(("policy=poly", "policy=constant"), ("max_batches=24", ""))
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg} has no max_batches, so training would never end. "
        "Say how far to train with --iterations."
    )


# Regions


@case
def region_missing(p: Place) -> tuple[list[object], str]:
    """Nothing to read from."""
    region = p.folder / "no.region"
    return p.read("digest", region=region), (
        f"There is no region {region}. Name a region made by plinius train."
    )


@case
def region_in_no_folder(p: Place) -> tuple[list[object], str]:
    """Nowhere to make a region."""
    region = p.folder / "no" / "new.region"
    return p.train(region=region), (
        f"There is no folder {region.parent} for a region. "
        "Make it, or name another file (--region)."
    )


@case
def region_is_a_folder(p: Place) -> tuple[list[object], str]:
    """A folder in place of a region."""
    region = p.folder / "folder"
    region.mkdir()
    return p.train(region=region), (
        f"Cannot use {region} as a region: Is a directory. "
        "Name a file in a folder that you can write to (--region)."
    )


@case
def region_foreign(p: Place) -> tuple[list[object], str]:
    """Another file in place of a region is not written to."""
    region = p.file("precious.tar", b"precious" * 1000)
    return p.train(region=region), (
        f"{region} is not a Plinius region. Name a region, or a file that is not there yet."
    )


@case
def region_empty(p: Place) -> tuple[list[object], str]:
    """An empty file is no region."""
    region = p.file("empty", b"")
    return p.train(region=region), (
        f"{region} is not a Plinius region. Name a region, or a file that is not there yet."
    )


@case
def region_of_the_future(p: Place) -> tuple[list[object], str]:
    """A region of a later version is not written to."""
    raw = bytearray(p.region.read_bytes())
    raw[8:12] = struct.pack("<I", 2)
    p.region.write_bytes(raw)
    return p.train(), (
        f"{p.region} is a region of version 2, and this program reads version 1. "
        "Use the release of plinius that made it."
    )


@case
def mirror_of_the_future(p: Place) -> tuple[list[object], str]:
    """A mirror of a later version in a region of this one."""
    raw = bytearray(p.region.read_bytes())
    at = raw.index(b"PLNSMIRR")
    raw[at + 8 : at + 12] = struct.pack("<I", 2)
    p.region.write_bytes(raw)
    return p.train(), (
        f"The mirror in {p.region} is of version 2, and this program reads version 1. "
        "Use the release of plinius that made it."
    )


@case
def region_truncated(p: Place) -> tuple[list[object], str]:
    """A region cut short by a page."""
    size = p.region.stat().st_size
    with p.region.open("r+b") as file:
        file.truncate(size - 4096)
    return p.train(), (
        f"{p.region} is cut short: {size - 4096:,} of {size:,} bytes. "
        "Restore a whole copy of it, or start a new region."
    )


@case
def region_cut_in_its_twins(p: Place) -> tuple[list[object], str]:
    """A region cut short within its directory."""
    with p.region.open("r+b") as file:
        file.truncate(8192)
    return p.read("digest"), (
        f"The header of {p.region} is damaged, or the file is cut short. "
        "Restore a whole copy of it, or start a new region."
    )


@case
def region_without_a_run(p: Place) -> tuple[list[object], str]:
    """A region that no run was mirrored to yet."""
    Region.create(p.folder / "new.region", 0).close()
    return p.read("digest", region=p.folder / "new.region"), (
        f"{p.folder}/new.region holds no mirrored run. Train one first: plinius train."
    )


# Another run than the region's


@case
def iterations_below_the_mirrored(p: Place) -> tuple[list[object], str]:
    """A run does not go back."""
    return p.train("--iterations", ITERATIONS - 1), (
        f"The run is at iteration {ITERATIONS} already, beyond --iterations {ITERATIONS - 1}. "
        "Ask for at least as many, or name another region (--region)."
    )


@case
def cfg_changed(p: Place) -> tuple[list[object], str]:
    """Any byte of the cfg counts."""
    cfg = p.cfg(more="# tuned\n")
    old, new = _sha(p.world.cfg), _sha(cfg)
    return p.train(cfg=cfg), (
        f"This is not the run in the region: cfg is {new}... but was {old}. {GIVE_ITS_RUN}"
    )


@case
def seed_and_precision_changed(p: Place) -> tuple[list[object], str]:
    """All that differs is told at once."""
    return p.train("--seed", 7, "--precision", "bf16"), (
        "This is not the run in the region: precision is bf16 but was fp32; seed is 7 but was 0. "
        f"{GIVE_ITS_RUN}"
    )


@case
def dataset_changed(p: Place) -> tuple[list[object], str]:
    """Another dataset of the same owner and shapes."""
    old, new = (call("inspect", d, "--json").json["id"] for d in (p.world.data, p.world.held_out))
    return p.train(data=p.world.held_out), (
        f"{p.world.held_out} is dataset {new}, but {p.region} holds dataset {old}. "
        "Give the dataset this run began with (--data), or another region (--region)."
    )


@case
def another_network_tested(p: Place) -> tuple[list[object], str]:
    """test takes the cfg of the run."""
    cfg = p.cfg(("filters=6", "filters=5"))
    return p.read("test", cfg, "--data", p.world.held_out), (
        f"This is not the run in the region: cfg is {_sha(cfg)}... but was {_sha(p.world.cfg)}. "
        f"{GIVE_ITS_RUN}"
    )


@case
def another_network_exported(p: Place) -> tuple[list[object], str]:
    """So does export, which leaves nothing."""
    cfg = p.cfg(("filters=6", "filters=5"))
    return p.read("export", cfg, "-o", p.folder / "net.weights"), (
        f"This is not the run in the region: cfg is {_sha(cfg)}... but was {_sha(p.world.cfg)}. "
        f"{GIVE_ITS_RUN}"
    )


@case
def export_would_overwrite_safetensors(p: Place) -> tuple[list[object], str]:
    """export never overwrites."""
    out = p.file("net.safetensors", b"precious")
    return p.read("export", p.world.cfg, "-o", out), (
        f"{out} exists already. Choose another name, or remove it first."
    )


@case
def export_would_overwrite_weights(p: Place) -> tuple[list[object], str]:
    """In neither format."""
    out = p.file("net.weights", b"precious")
    return p.read("export", p.world.cfg, "-o", out), (
        f"{out} exists already. Choose another name, or remove it first."
    )


@case
def metrics_in_no_folder(p: Place) -> tuple[list[object], str]:
    """Metrics that cannot be written stop nothing half-way."""
    metrics = p.folder / "no" / "m.jsonl"
    return p.train("--metrics", metrics), (
        f"Cannot write metrics to {metrics}: No such file or directory. "
        "Name a file in a folder that you can write to (--metrics)."
    )


@case
def commit_that_does_not_open(p: Place) -> tuple[list[object], str]:
    """A flipped bit in the newest commit is refused by name, not passed over."""
    flip_newest(p.region)
    return p.train(), _does_not_open(p.region)


@case
def commit_that_does_not_open_to_readers(p: Place) -> tuple[list[object], str]:
    """Nor does the digest fall back to the commit before."""
    flip_newest(p.region)
    return p.read("digest"), _does_not_open(p.region)


@case
def commit_that_does_not_verify(p: Place) -> tuple[list[object], str]:
    """Nor is it called good."""
    flip_newest(p.region)
    return ["region", "verify", p.region, "--key", p.world.key], _does_not_open(p.region)


@case
def record_that_does_not_open(p: Place) -> tuple[list[object], str]:
    """A flipped bit in the last record of the dataset extent is found by verify."""
    with Region.open(p.region) as region:
        span = region.extent("dataset")
        assert span is not None
        at = span.end - 1
        region.medium.store(at, bytes([region.medium.read(at, 1)[0] ^ 1]))
        region.medium.flush(at, 1)
        region.medium.fence()
    return ["region", "verify", p.region, "--key", p.world.key], (
        f"Record {RECORDS - 1} of the dataset in {p.region} does not open with this key. It was "
        "altered, is in the wrong place, or was sealed with another key; fetch it again from its "
        "owner."
    )


@pytest.mark.parametrize("bad", CASES, ids=lambda made: made.__name__)
def test_bad_input_is_one_sentence_and_loses_nothing(place: Place, bad: Case) -> None:
    """The sentence of each entry of the table, exit 1, and every file as it was."""
    arguments, sentence = bad(place)
    before = tree(place.folder, place.world.folder)
    told = call(*arguments, "--json")
    assert (told.code, told.stdout) == (1, "")
    *talk, last = told.stderr.splitlines()
    assert last == f"plinius: {sentence}"
    assert all(line.startswith(("Resumed at ", "The region is ")) for line in talk)
    assert tree(place.folder, place.world.folder) == before


def test_a_real_process_refuses_with_exit_1(place: Place) -> None:
    """Out of the test's process too: the sentence on stderr, nothing on stdout, exit 1."""
    arguments, sentence = wrong_key_for_the_digest(place)
    assert run(*arguments, "--json") == Told(1, "", f"plinius: {sentence}\n")


@pytest.mark.parametrize("command", ["train", "digest", "verify", "info", "doctor"])
def test_a_region_in_use_is_refused(place: Place, command: str) -> None:
    """While another process holds the region nobody else touches it; afterwards all goes on."""
    arguments = {
        "train": place.train(),
        "digest": place.read("digest"),
        "verify": ["region", "verify", place.region],
        "info": ["region", "info", place.region],
        "doctor": ["doctor", place.region],
    }[command]
    holds = (
        "import sys; from plinius.pm.region import Region; region = Region.open(sys.argv[1]); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", holds, place.region],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = tree(place.folder)
        told = call(*arguments)
        assert tree(place.folder) == before
        holder.send_signal(signal.SIGKILL)
    assert told == Told(
        1,
        "",
        f"plinius: {place.region} is in use by another process. Wait until it is done, or stop "
        "it; then run the same command again.\n",
    )
    assert call(*arguments).code == 0


def test_a_new_region_in_the_making_is_refused(place: Place) -> None:
    """Two trainers that start at once do not make one region together."""
    new = place.folder / "new.region"
    held = Region.create(place.folder / "other.region", 0)
    (place.folder / "new.region.creating").hardlink_to(place.folder / "other.region")
    told = call(*place.train(region=new))
    held.close()
    assert told.code == 1
    assert told.stderr.startswith(f"plinius: {new} is in use by another process. ")
    assert not new.exists()


def test_a_read_only_place_is_refused(place: Place, tmp_path: Path) -> None:
    """On a read-only mount a region is neither made nor trained in, but can be read."""
    there = tmp_path / "read-only"
    there.mkdir()
    region = there / "run.region"
    shutil.copy(place.region, region)
    with mounted(there, "--bind", str(there)) as bound:
        if not bound:
            pytest.skip("this process may not mount")
        subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
        before = tree(there)
        for arguments, path in (
            (place.train(region=region), region),
            (place.train(region=there / "new.region"), there / "new.region"),
        ):
            assert call(*arguments) == Told(
                1,
                "",
                f"plinius: Cannot use {path} as a region: Read-only file system. "
                "Name a file in a folder that you can write to (--region).\n",
            )
        keygen = call("keygen", "-o", there / "owner.key")
        assert keygen.stderr == (
            f"plinius: Cannot create {there}/owner.key: Read-only file system. "
            "Choose a folder you can write to.\n"
        )
        pair = ["--images", place.world.images, "--labels", place.world.labels]
        sealing = call("seal", "--key", place.world.key, "-o", there / "out.sealed", *pair)
        assert sealing.stderr == (
            f"plinius: Cannot write {there}/out.sealed: Read-only file system. "
            "Free some space or choose another folder.\n"
        )
        for name in ("net.weights", "net.safetensors"):
            exported = call(*place.read("export", place.world.cfg, "-o", there / name))
            assert exported.code == 1
            assert "Read-only file system" in exported.stderr
        assert call(*place.read("digest", region=region)).code == 0
        assert tree(there) == before


def test_a_full_disk_loses_nothing(place: Place, tmp_path: Path) -> None:
    """A disk too small for the data says so; with room the same command goes on to the end."""
    disk = tmp_path / "disk"
    region = disk / "run.region"
    with mounted(disk, "-t", "tmpfs", "-o", "size=192k", "tmpfs") as there:
        if not there:
            pytest.skip("this process may not mount a file system")
        told = call(*place.train(region=region))
        assert (told.code, told.stdout) == (1, "")
        assert told.stderr.startswith("plinius: The disk has no room for a region of ")
        assert told.stderr.endswith(
            " bytes. Free some space, or put the region elsewhere (--region).\n"
        )
        assert call("region", "verify", region).code == 0
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        told = call(*place.train(region=region))
        assert told.code == 0, told.stderr
        assert digest_of(region, place.world.key) == digest_of(place.region, place.world.key)


def test_a_full_disk_leaves_no_half_made_file(place: Place, tmp_path: Path) -> None:
    """Where there is room for nothing, neither a region nor a sealed dataset is left in part."""
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=16k", "tmpfs") as there:
        if not there:
            pytest.skip("this process may not mount a file system")
        made = call(*place.train(region=disk / "run.region"))
        assert made.stderr == (
            "plinius: The disk has no room for a region of 135,168 bytes. "
            "Free some space, or put the region elsewhere (--region).\n"
        )
        pair = ["--images", place.world.images, "--labels", place.world.labels]
        sealing = call("seal", "--key", place.world.key, "-o", disk / "out.sealed", *pair)
        assert sealing.stderr == (
            f"plinius: Cannot write {disk}/out.sealed: No space left on device. "
            "Free some space or choose another folder.\n"
        )
        assert (made.code, sealing.code) == (1, 1)
        assert tree(disk) == {}


def test_metrics_on_a_full_disk_keep_the_run(place: Place, tmp_path: Path) -> None:
    """Metrics that find no room stop the run with a sentence; what was mirrored goes on later."""
    region, disk = tmp_path / "new.region", tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=4k", "tmpfs") as there:
        if not there:
            pytest.skip("this process may not mount a file system")
        metrics = disk / "m.jsonl"
        metrics.write_bytes(b"\n" * 4096)
        told = call(*place.train("--metrics", metrics, region=region))
    assert told == Told(1, "", told.stderr)
    assert "No space left on device" in told.stderr.splitlines()[-1]
    assert newest_snapshot(region, load_key(place.world.key)).iteration >= 1
    assert call(*place.train(region=region)).code == 0
    assert digest_of(region, place.world.key) == digest_of(place.region, place.world.key)


def test_the_commit_before_is_taken_only_when_asked(place: Place) -> None:
    """--accept-previous goes on from the commit before and ends where the run had ended."""
    wanted = digest_of(place.region, place.world.key)
    flip_newest(place.region)
    told = call(*place.train("--accept-previous", "--json"))
    assert told.json["resumed_at"] == ITERATIONS - 1
    assert f"Resumed at iteration {ITERATIONS - 1}" in told.stderr
    assert digest_of(place.region, place.world.key) == wanted


def test_a_whole_commit_is_never_passed_over(place: Place) -> None:
    """--accept-previous changes nothing where the newest commit opens."""
    before = tree(place.folder)
    assert call(*place.train("--accept-previous", "--json")).json["resumed_at"] == ITERATIONS
    assert tree(place.folder) == before


def test_two_broken_commits_are_not_accepted(place: Place) -> None:
    """Where the commit before does not open either, --accept-previous refuses it by name."""
    flip_newest(place.region)
    flip_newest(place.region, older=1)
    before = tree(place.folder)
    told = call(*place.train("--accept-previous"))
    assert told.code == 1
    assert told.stderr.startswith(f"plinius: Commit {ITERATIONS} in the mirror of {place.region} ")
    assert tree(place.folder) == before


def test_a_mirror_of_another_region_is_refused(place: Place, world: World) -> None:
    """A slot moved in from another run under the same key is not taken for this run's."""
    other = place.folder / "other.region"
    assert call(*world.train(other)).code == 0
    raw, foreign = bytearray(place.region.read_bytes()), other.read_bytes()
    at, slot = _newest_slot(place.region)
    raw[at + 64 : at + slot] = foreign[at + 64 : at + slot]  # all but the commit word
    place.region.write_bytes(raw)
    told = call(*place.train())
    assert told == Told(1, "", f"plinius: {_does_not_open(place.region)}\n")


def test_a_region_of_another_run_is_refused(place: Place, world: World) -> None:
    """The region of a run that began otherwise is not trained in, whatever differs."""
    other = place.folder / "other.region"
    assert call(*world.train(other, "--seed", 3, "--iterations", 2)).code == 0
    before = tree(place.folder)
    told = call(*place.train(region=other))
    assert told == Told(
        1,
        "",
        f"plinius: This is not the run in the region: seed is 0 but was 3. {GIVE_ITS_RUN}\n",
    )
    assert tree(place.folder) == before


def test_memory_is_refused_in_the_same_words(place: Place) -> None:
    """A bad region in memory gets the sentence of a bad region on disk."""
    with memory_folder() as folder:
        if folder is None:
            pytest.skip("there is no memory file system to write to")
        region = folder / "run.region"
        shutil.copy(place.region, region)
        flip_newest(region)
        assert call(*place.train(region=region)) == Told(
            1, "", f"plinius: {_does_not_open(region)}\n"
        )


def flip_newest(region: Path, older: int = 0) -> None:
    """Flip a bit in the last sealed chunk of the newest commit (or of one before it)."""
    at, _ = _newest_slot(region, older)
    raw = bytearray(region.read_bytes())
    manifest, data = struct.unpack_from("<QQ", raw, at + 96)
    raw[at + 128 + manifest + data - 1] ^= 1
    region.write_bytes(raw)


def _newest_slot(region: Path, older: int = 0) -> tuple[int, int]:
    """Where the newest commit's slot begins, and its bytes (docs/formats/mirror.md)."""
    about = call("region", "info", region, "--json").json
    slot, commit = about["mirror"]["slot_bytes"], about["mirror"]["commits"] - older
    return about["extents"]["mirror"][0] + 4096 + commit % 2 * slot, slot


def _does_not_open(region: Path) -> str:
    return (
        f"Commit {ITERATIONS + 1} in the mirror of {region} does not open with this key. It was "
        "altered or the disk is failing: restore a copy of the region; to go on from the commit "
        "before, knowingly, add --accept-previous."
    )


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
