"""What makes another run, and what does not."""

from pathlib import Path

import pytest

from cli.world import CFG, World, call, digest_of
from plinius.darknet.cfg import Cfg, parse_cfg
from plinius.darknet.recipe import differences, recipe

CONSTANT = CFG.replace("policy=poly\npower=4\n", "")


def test_what_computes_nothing_makes_no_other_run(world: World, tmp_path: Path) -> None:
    """A comment, blanks, the order of keys, more iterations, another name, other log options."""
    one, other = tmp_path / "one.cfg", tmp_path / "other.cfg"
    one.write_text(CONSTANT)
    text = CONSTANT.replace("batch=8\n", "# eight\n batch = 8 # records\n")
    text = text.replace("height=8\nwidth=8\n", "width=8\nheight=8\n")
    other.write_text(text.replace("max_batches=24", "max_batches=30"))
    region, straight = tmp_path / "r.region", tmp_path / "s.region"
    assert call("train", one, *world.train(region)[2:]).code == 0
    log = ["--metrics", tmp_path / "m.jsonl", "--log-every", 2, "--verbose", "--mirror-every", 3]
    more = call("train", other, *world.train(region, *log, "--json")[2:])
    assert (more.json["resumed_at"], more.json["iteration"]) == (24, 30)
    assert "28/30 loss" in more.stderr
    assert " open " in more.stderr
    tested = ["--data", world.held_out, "--region", region, "--key", world.key]
    assert call("test", one, *tested).code == 0
    assert call("train", other, *world.train(straight, "--quiet")[2:]).stderr == ""
    assert digest_of(region, world.key) == digest_of(straight, world.key)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("batch=8", "batch=16"), "[net] batch is 16 but was 8"),
        (("momentum=0.9\n", ""), "[net] momentum is its default but was 0.5"),
        (("policy=poly", "policy=constant"), "[net] policy is its default but was poly"),
        (("filters=8", "filters=9"), "layer 2 [convolutional] filters is 9 but was 8"),
        (("[avgpool]\n", ""), "layer 5 is [softmax] but was [avgpool]"),
        (("groups=1", "groups=1\n\n[cost]"), "it has 8 layers but had 7"),
    ],
)
def test_what_differs_is_named(change: tuple[str, str], told: str) -> None:
    """By the key, in its section or layer; the first layer of another kind."""
    before = CFG.replace("momentum=0.9", "momentum=0.5") if "momentum" in told else CFG
    after = before.replace(change[0].replace("0.9", "0.5"), change[1], 1)
    found = differences(recipe(_parsed(after)), recipe(_parsed(before)))
    assert told in found
    assert differences(recipe(_parsed(after)), None) == []


def _parsed(text: str) -> Cfg:
    return parse_cfg(text, "t.cfg")
