"""A place where a command is given bad input, and the table of such inputs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.world import (
    CFG,
    ITERATIONS,
    World,
    call,
    textures,
    write_idx,
)
from plinius.key_file import load_key

GIVE_ITS_RUN = "Use the settings that run began with, or name another region (--region)."
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
        w = self.world
        names: dict[str, object] = {"cfg": w.cfg, "data": w.data, "region": self.region}
        names |= {"key": w.key} | instead
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


Case = Callable[[Place], tuple[list[object], str]]
CASES: list[Case] = []


def case(made: Case) -> Case:
    """Enter a bad input into the table: it gives the arguments and the sentence to expect."""
    CASES.append(made)
    return made


def flip_newest(region: Path, older: int = 0) -> None:
    """Flip a bit in the first sealed chunk of the newest commit (or of one before it)."""
    at, _ = newest_slot(region, older)
    raw = bytearray(region.read_bytes())
    room = call("region", "info", region, "--json").json["mirror"]["manifest_room"]
    raw[at + 4096 + room] ^= 1
    region.write_bytes(raw)


def newest_slot(region: Path, older: int = 0) -> tuple[int, int]:
    """Where the newest commit's slot begins, and its bytes (docs/formats/mirror.md)."""
    about = call("region", "info", region, "--json").json
    slot, commit = about["mirror"]["slot_bytes"], about["mirror"]["commits"] - older
    return about["extents"]["mirror"][0] + 4096 + commit % 2 * slot, slot


def does_not_open(region: Path) -> str:
    return (
        f"Commit {ITERATIONS} in the mirror of {region} does not open with this key. It was "
        "altered or the disk is failing: restore a copy of the region; to go on from the commit "
        "before, knowingly, train with --accept-previous."
    )


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
