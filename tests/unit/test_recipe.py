"""The recipe of a cfg: what computes alike has one digest, what computes otherwise another."""

import dataclasses
from pathlib import Path

import pytest

from plinius.darknet.cfg import Cfg, Net, parse_cfg, read_cfg
from plinius.darknet.recipe import recipe, recipe_digest

CFG = "[net]\nbatch=8\ninputs=64\nmax_batches=9\n[connected]\noutput=4\nactivation=linear\n[cost]\n"


@pytest.mark.parametrize(
    "same",
    [
        CFG.replace("batch=8", "# more\n batch = 8\n;x"),
        CFG.replace("batch=8\ninputs=64", "inputs=64\nbatch=8"),
        CFG.replace("max_batches=9", "max_batches=900"),
        CFG.replace("batch=8", "batch=8\nmomentum=0.90\nsubdivisions=1\nbatch=9\nnonsense=1"),
        CFG.replace("[cost]\n", "[cost]\ntype=sse\nscale=1.0\n"),
    ],
)
def test_what_only_writes_the_cfg_otherwise_leaves_the_recipe(same: str) -> None:
    """Comments, order, defaults, ignored lines, and max_batches where no rate depends on it."""
    assert same != CFG
    assert recipe_digest(parse_cfg(same, "b")) == recipe_digest(parse_cfg(CFG, "a"))


@pytest.mark.parametrize(
    "other",
    [
        CFG.replace("batch=8", "batch=16"),
        CFG.replace("batch=8", "batch=8\nsubdivisions=2"),
        CFG.replace("batch=8", "batch=8\nlearning_rate=0.002"),
        CFG.replace("[cost]\n", "[cost]\ntype=L1\n"),
        CFG.replace("output=4", "output=4\nstopbackward=1"),
        CFG.replace("[cost]", "[dropout]\nprobability=0.5\n[cost]"),
        CFG.replace("batch=8", "batch=8\npolicy=poly\npower=4"),
    ],
)
def test_what_computes_otherwise_is_another_recipe(other: str) -> None:
    """Each of them changes what leaves, or could."""
    assert recipe_digest(parse_cfg(other, "a")) != recipe_digest(parse_cfg(CFG, "a"))


def test_max_batches_belongs_to_the_recipe_under_poly() -> None:
    """The rate then depends on it."""
    poly = CFG.replace("batch=8", "batch=8\npolicy=poly\npower=4")
    longer = poly.replace("max_batches=9", "max_batches=10")
    assert recipe_digest(parse_cfg(poly, "a")) != recipe_digest(parse_cfg(longer, "a"))


@pytest.mark.parametrize("key", ["tree", "map"])
def test_the_files_that_a_cfg_names_belong_to_the_recipe(key: str, tmp_path: Path) -> None:
    """By what they say, not by their names."""
    layers = {
        "tree": "[connected]\noutput=3\nactivation=linear\n[softmax]\ntree={}\n",
        "map": "[connected]\noutput=18\nactivation=linear\n[region]\nclasses=3\nnum=1\nmap={}\n",
    }
    texts = {"tree": ("a -1\nb -1\nc 0\n", "a -1\nb -1\nc 1\n"), "map": ("0\n1\n2\n", "0\n2\n1\n")}
    found = []
    for name, text in (("one", texts[key][0]), ("two", texts[key][0]), ("three", texts[key][1])):
        (tmp_path / name).write_text(text)
        path = tmp_path / f"{name}.cfg"
        path.write_text("[net]\nbatch=8\ninputs=64\n" + layers[key].format(name))
        found.append(recipe_digest(read_cfg(path)))
    assert found[0] == found[1] != found[2]


def test_a_recipe_is_made_of_everything_a_cfg_holds() -> None:
    """A new field of Cfg must go into the recipe, or be named here as of no effect."""
    assert {field.name for field in dataclasses.fields(Cfg)} == {
        *("net", "sections"),
        *("trees", "maps"),  # in the sections that name them
        *("name", "warnings", "sha256"),  # of no effect on what is computed
    }
    wanted = ["net", {"batch": 8, "inputs": 64}]
    parsed = parse_cfg(CFG, "a")
    assert recipe(parsed) == [
        wanted,
        ["connected", {"activation": "linear", "output": 4}],
        ["cost", {}],
    ]
    assert all(
        field.name in str(dataclasses.asdict(parsed.net)) for field in dataclasses.fields(Net)
    )
