"""Regions with kept commits, of which bytes were changed: every command ends in one sentence."""

import random
import time
from pathlib import Path

import pytest

from cli.world import World, call
from crash.stops import SEED, rng_of
from plinius.key_file import load_key
from plinius.training.trainer import Run, Settings

HEAD = 200


def changed(good: bytes, spots: list[int], rng: random.Random) -> bytes:
    """Some bytes of heads and directory changed, or the end cut off."""
    raw = bytearray(good)
    for _ in range(rng.choice([1, 1, 2, 5])):
        raw[rng.choice(spots) + rng.randrange(HEAD)] = rng.randrange(256)
    return bytes(raw if rng.random() < 0.9 else raw[: rng.randrange(len(raw))])


def test_no_changed_region_makes_a_command_fail_with_more_than_a_sentence(
    world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whatever is changed: exit 0 or 1, no traceback, and nothing left beside the region."""
    region = tmp_path / "run.region"
    settings = Settings(world.cfg, world.data, threads=1, keep=2, keep_every=4)
    with Run(region, load_key(world.key), settings) as run:
        run.train(5, 1, lambda _: None)
        run.mirror.keep("best")
        run.train(8, 1, lambda _: None)
    good, mine = region.read_bytes(), ["--key", world.key]
    extents = call("region", "info", region, "--json").json["extents"].values()
    heads = [offset for offset, _ in extents]
    spots = [0, 4096, 4096 + 2112, *heads, *(head + 4096 for head in heads)]
    print(f"PLINIUS_TEST_SEED={SEED} does it again")
    rng = random.Random(int(rng_of("kept").integers(2**62)))
    until = time.monotonic() + (300 if request.config.getoption("--soak") else 1.5)
    codes = set()
    while time.monotonic() < until:
        region.write_bytes(changed(good, spots, rng))
        for command in (
            ["region", "log", region],
            ["region", "log", region, *mine],
            ["region", "ls", region, *mine, "--commit", "best"],
            ["digest", "--region", region, *mine, "--commit", "8"],
            ["region", "backup", region, tmp_path / "copy"],
            ["verify", region, *mine],
            ["region", "compact", region, "--drop", "4"],
            ["rekey", region, *mine, "--new-key", world.other_key],
        ):
            codes.add(call(*command).code)
            (tmp_path / "copy").unlink(missing_ok=True)
            assert [path.name for path in tmp_path.iterdir()] == ["run.region"]
    assert codes == {0, 1}
