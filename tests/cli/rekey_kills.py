"""Kills a rekey before calls that change a folder or make bytes durable, and checks each time.

Arguments: the file, old key, new key, a folder to work in, and N: before every N-th of those calls.
Without torch, and forked from a process without threads. Prints how many kills there were.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plinius.data.dataset_extent import open_dataset
from plinius.data.sealed_dataset import SealedDataset
from plinius.history.reading import snapshot_of
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.maintenance.rekey import kind_of, rekey_dataset
from plinius.maintenance.rekey_region import rekey_region
from plinius.pm.region import Region

CALLS = ("fsync", "fdatasync", "link", "replace", "unlink", "ftruncate", "posix_fallocate", "chmod")


def killed_at(number: int, call: Callable[[], object]) -> bool:
    """Call in a child that is killed before its call `number` of those; whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*arguments: Any, **more: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen == number:
                    os._exit(9)
                return real(*arguments, **more)

            return wrapper

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        call()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9


def content(path: Path, key: OwnerKey) -> object:
    """What a file holds, opened with a key."""
    states = []
    if kind_of(path) == "dataset":
        dataset = SealedDataset.from_file(path, key)
        records = dataset.open_batch(range(dataset.header.count))
    else:
        states = [snapshot_of(path, key, name).digest() for name in ("newest", "best", "16")]
        with Region.open(path) as region:
            region.consistency_check()
            dataset = open_dataset(region, key)
            records = dataset.open_batch(range(dataset.header.count))
    return dataset.header.id, dataset.about, *(one.tobytes() for one in records), states


def key_in(path: Path, old: OwnerKey, new: OwnerKey) -> OwnerKey:
    raw = path.read_bytes()
    assert (old.id in raw) != (new.id in raw), "a file under two keys"
    return new if new.id in raw else old


def main(source: Path, old: OwnerKey, new: OwnerKey, folder: Path, every: int) -> None:
    """Kill it everywhere."""
    path = folder / source.name
    rekey = rekey_dataset if kind_of(source) == "dataset" else rekey_region
    wanted = content(source, old)
    kills, number = 0, 1
    while True:
        shutil.copy(source, path)
        done = not killed_at(number, lambda: rekey(path, old, new, lambda *_: None))
        key = key_in(path, old, new)
        assert content(path, key) == wanted
        assert rekey(path, old, new, lambda *_: None) is (key is old)
        assert content(path, new) == wanted
        assert [one.name for one in folder.iterdir()] == [path.name], [*folder.iterdir()]
        if done:
            break
        kills, number = kills + 1, number + every
    print(kills)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        load_key(sys.argv[2]),
        load_key(sys.argv[3]),
        Path(sys.argv[4]),
        int(sys.argv[5]),
    )
