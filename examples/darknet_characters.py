"""A recurrent Darknet network that writes like Python's own reference (characters.cfg)."""

from pathlib import Path

import text
from darknet_run import finish
from place import place

import plinius
from plinius.slots import newest_snapshot
from plinius.sources.text import text_source
from plinius.training.generation import generate

CFG = Path(__file__).with_name("characters.cfg")
LENGTH = 32


def seal_text(folder: Path, key: plinius.OwnerKey) -> tuple[Path, Path]:
    """The owner: most of the text to train on, the rest to test with."""
    train, test = (folder / f"text.{part}.sealed" for part in ("train", "test"))
    whole = text.whole()
    for path, part in ((train, whole[:-20_000]), (test, whole[-20_000:])):
        if not path.exists():
            path.with_suffix(".txt").write_bytes(part)
            plinius.seal(text_source(path.with_suffix(".txt"), LENGTH).source, key, path)
    return train, test


if __name__ == "__main__":
    here = place("darknet_characters", iterations=600)
    finish(here, CFG, *seal_text(here.region.parent, here.key))
    snapshot = newest_snapshot(here.region, here.key)
    print(bytes(generate(CFG, snapshot, b"The ", 200, temperature=0.5)).decode(errors="replace"))
