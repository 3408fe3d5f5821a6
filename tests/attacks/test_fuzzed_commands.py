"""Files with other bytes in them, given to commands: an exit code, a sentence, never a traceback.

Commands run in this process, so that an exception of any other kind fails the test.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import plinius.darknet.build
from attacks.mutations import first_seed, flipping, mutated, mutated_region, mutated_text
from cli.world import Result, World, call

pytestmark = pytest.mark.filterwarnings("ignore")
REGION = ("inspect", "info", "verify", "verify whole", "digest", "doctor", "export", "describe")
SLOW = ("test", "train")


def arguments(name: str, bad: Path, world: World, folder: Path) -> list[object]:
    """A command that reads `bad`; what it would make is in `folder`."""
    key, out, new = ("--key", world.key), ("-o", folder / "out"), folder / "new.region"
    whole = ("--region", folder / "whole.region")
    weights, safetensors = folder / "out.weights", folder / "out.safetensors"
    return {
        "inspect": ["inspect", bad],
        "info": ["region", "info", bad, "--json"],
        "verify": ["region", "verify", bad],
        "verify whole": ["region", "verify", bad, *key],
        "digest": ["digest", "--region", bad, *key],
        "doctor": ["doctor", bad],
        "export": ["export", world.cfg, "--region", bad, *key, "-o", weights],
        "describe": ["export", "--region", bad, *key, "-o", safetensors],
        "test": ["test", world.cfg, "--data", world.held_out, "--region", bad, *key],
        "train": world.train(bad, "--iterations", 26, "--accept-previous"),
        "test this": ["test", world.cfg, "--data", bad, *whole, *key],
        "train on this": ["train", world.cfg, "--data", bad, "--region", new, *key,
                          "--iterations", 1, "--threads", 1],
        "seal with this": ["seal", "--key", bad, *out, "--images", world.images],
        "digest with this": ["digest", *whole, "--key", bad],
        "train this": ["train", bad, "--data", world.data, "--region", new, *key,
                       "--iterations", 1, "--threads", 1],
        "test of this": ["test", bad, "--data", world.held_out, *whole, *key],
        "export this": ["export", bad, *whole, *key, "-o", weights],
        "start from this": world.train(new, "--weights", bad, "--iterations", 1),
        "seal this": ["seal", *key, *out, "--images", bad],
    }[name]  # fmt: skip


def require_a_sentence(told: Result, what: str) -> None:
    """Exit 0, 1, 2 or 75; what is refused is refused in one line."""
    assert told.code in (0, 1, 2, 75), (what, told)
    refusals = [line for line in told.stderr.splitlines() if line.startswith("plinius: ")]
    assert len(refusals) == (told.code == 1), (what, told)
    if told.code == 1:
        assert told.stderr.endswith(refusals[0] + "\n"), (what, told)
        assert refusals[0].endswith("."), (what, told)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A description may ask for 8 GiB; here what asks for more than some MiB is refused."""
    monkeypatch.setattr(plinius.darknet.build, "MAX_PARAMETERS", 2**20)
    monkeypatch.setattr(plinius.darknet.build, "MAX_VALUES_PER_PASS", 2**20)


Change = Callable[[bytes, random.Random], bytes]
FILES: dict[str, tuple[str, Change, tuple[str, ...], int]] = {
    "region": ("trained", mutated_region, REGION, 10_000),
    "trained region": ("trained", mutated_region, SLOW, 1_000),
    "dataset": ("data", mutated, ("inspect", "test this", "train on this"), 4_000),
    "key": ("key", mutated_text, ("seal with this", "digest with this"), 4_000),
    "cfg": ("cfg", mutated_text, ("train this", "test of this", "export this"), 4_000),
    "weights": ("weights", mutated, ("start from this",), 2_000),
    "safetensors": ("safetensors", mutated, ("start from this",), 2_000),
    "images": ("images", mutated, ("seal this", "inspect"), 4_000),
}


@pytest.mark.parametrize("kind", FILES)
def test_commands_say_a_sentence_about_a_mutated_file(
    kind: str, world: World, trained: Path, place: Path, request: pytest.FixtureRequest
) -> None:
    """Whatever is in it: exit 0, 1, 2 or 75, one line if refused, and no half-made file."""
    source, change, names, many = FILES[kind]
    rounds = many if request.config.getoption("--soak") else 120 // len(names)
    whole_region = place / "whole.region"
    whole_region.write_bytes(trained.read_bytes())
    if source in ("weights", "safetensors"):
        original = place / f"net.{source}"
        made = call("export", world.cfg, "--region", trained, "--key", world.key, "-o", original)
        assert made.code == 0
    else:
        original = trained if source == "trained" else getattr(world, source)
    whole, codes = original.read_bytes(), dict.fromkeys((0, 1, 2, 75), 0)
    bad, kept = place / f"bad{original.suffix}", {whole_region, original}
    rng = random.Random(first_seed())
    for number in range(rounds):
        raw = change(whole, rng)
        for name in names:
            bad.unlink(missing_ok=True)
            bad.write_bytes(raw)
            bad.chmod(0o600)
            told = call(*arguments(name, bad, world, place))
            require_a_sentence(told, f"mutation {number} of {kind}, {name}")
            codes[told.code] += 1
            for path in set(place.iterdir()) - kept - {bad}:
                assert told.code == 0 or path.name == "new.region", (number, name, path)
                path.unlink()
    assert codes[1] > rounds // 20
    print(f"{rounds:,} of {kind}, {len(names)} commands: {codes}")


def test_commands_say_a_sentence_while_bytes_flip(
    world: World, trained: Path, place: Path, request: pytest.FixtureRequest
) -> None:
    """The host writes to the region, or to the dataset, while a command reads it."""
    (place / "whole.region").write_bytes(trained.read_bytes())
    rounds = 1_000 if request.config.getoption("--soak") else 3
    bad = place / "bad"
    for number in range(rounds):
        for source, names in ((trained, (*REGION, *SLOW)), (world.data, ("inspect", "test this"))):
            for name in names:
                bad.unlink(missing_ok=True)
                bad.write_bytes(source.read_bytes())
                with flipping(bad, first_seed() + number):
                    told = call(*arguments(name, bad, world, place))
                require_a_sentence(told, f"round {number}, {name}")
                for path in place.glob("out*"):
                    path.unlink()
