"""Where an example keeps its key and its region: `--work FOLDER`, and how far it goes."""

import argparse
from pathlib import Path
from typing import NamedTuple

import plinius


class Place(NamedTuple):
    """A region's path, the owner's key, and the last iteration."""

    region: Path
    key: plinius.OwnerKey
    iterations: int


def place(name: str, iterations: int) -> Place:
    """Read the command line; make the folder and a key if there is none yet."""
    parser = argparse.ArgumentParser(description="Kill it and run it again: it resumes.")
    parser.add_argument("--work", type=Path, default=Path(__file__).with_name("work"))
    parser.add_argument("--iterations", type=int, default=iterations)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    key = given.work / "owner.key"
    if not key.exists():
        plinius.OwnerKey.generate().save(key)
    return Place(given.work / f"{name}.region", plinius.load_key(key), given.iterations)
