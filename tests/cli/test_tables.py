"""The way of a table: seal in parts, train, test, predict, and open the predictions."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plinius
from cli.world import World, call, tree

CFG = """\
[net]
inputs=3
batch=16
learning_rate=0.1
momentum=0.9
max_batches=150

[connected]
output={outputs}
activation=linear

{end}
"""


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Patients: two numbers, a town, a kind that the numbers decide, and a sum of them."""
    random = np.random.default_rng(seed)
    table = []
    for number in range(count):
        a, b = random.normal(50, 20), random.normal(0.3, 0.1)
        kind = ["low", "middle", "high"][int(np.searchsorted([40, 60], a))]
        cost = 2 * a + 30 * b
        table.append({"id": f"p{number}", "a": a, "b": b, "kind": kind, "cost": cost})
    return table


def write(path: Path, table: list[dict[str, Any]], *without: str) -> Path:
    with path.open("w", newline="") as file:
        names = [name for name in table[0] if name not in without]
        lines = csv.DictWriter(file, names, extrasaction="ignore")
        lines.writeheader()
        lines.writerows(table)
    return path


def done(*arguments: object) -> None:
    """Run a command that succeeds."""
    result = call(*arguments)
    assert result.code == 0, result.stderr


class Way:
    """A table sealed in parts, a cfg, and the run trained on it."""

    def __init__(self, world: World, folder: Path, target: str, other: str, cfg: str) -> None:
        self.world, self.folder = world, folder
        self.cfg = folder / "t.cfg"
        self.cfg.write_text(cfg.replace("inputs=3", "inputs=2"))
        data = write(folder / "t.csv", rows(300, 0))
        what = ["--csv", data, "--target", target, "--id", "id", "--drop", other]
        done(*self.seal("t.sealed"), *what, "--standardize", "--split", "0.7,0.3")
        self.region = folder / "run.region"
        self.run = ["--region", self.region, "--key", world.key]
        done("train", self.cfg, "--data", self.part("train"), *self.run, "--threads", 1)

    def seal(self, name: str) -> list[object]:
        return ["seal", "--json", "--key", self.world.key, "-o", self.folder / name]

    def part(self, name: str) -> Path:
        return self.folder / f"t.{name}.sealed"

    def test(self, data: Path) -> Any:
        return call("test", self.cfg, "--data", data, *self.run, "--json")

    def predict(self, data: Path, out: str) -> Any:
        to = ["-o", self.folder / out, "--json"]
        return call("predict", self.cfg, "--data", data, *self.run, *to)


@pytest.fixture(name="classes", scope="module")
def _classes(world: World, tmp_path_factory: pytest.TempPathFactory) -> Way:
    cfg = CFG.format(outputs=3, end="[softmax]")
    return Way(world, tmp_path_factory.mktemp("classes"), "kind", "cost", cfg)


@pytest.fixture(name="numbers", scope="module")
def _numbers(world: World, tmp_path_factory: pytest.TempPathFactory) -> Way:
    cfg = CFG.format(outputs=1, end="[cost]\ntype=sse").replace("rate=0.1", "rate=0.02")
    return Way(world, tmp_path_factory.mktemp("numbers"), "cost", "kind", cfg)


def test_classes_are_reported_by_their_names(classes: Way) -> None:
    """Confusion and recall in the order of the names; no area where there are three classes."""
    found = classes.test(classes.part("test")).json
    assert (found["task"], found["classes"]) == ("classification", ["high", "low", "middle"])
    assert found["accuracy"] > 0.8
    assert sum(map(sum, found["confusion"])) == found["samples"] == 90
    assert found["recall"][0] == found["confusion"][0][0] / sum(found["confusion"][0])
    assert "auc" not in found


def test_a_regression_has_no_accuracy(numbers: Way) -> None:
    """But an error in the units of the target, and R2."""
    found = numbers.test(numbers.part("test")).json
    assert set(found) == {"task", "samples", "mae", "rmse", "r2", "iteration"}
    assert found["task"] == "regression"
    assert found["r2"] > 0.95


def test_predictions_are_sealed_for_the_owner(classes: Way) -> None:
    """New records without labels; opened, they have ids, probabilities and class names."""
    new = classes.folder / "new.sealed"
    table = rows(20, 1)
    csv_file = write(classes.folder / "new.csv", table, "kind", "cost")
    like = ["--like", classes.part("train")]
    done(*classes.seal("new.sealed"), "--csv", csv_file, "--id", "id", *like)
    told = classes.predict(new, "p.sealed")
    assert told.json | {"predictions": ""} == {
        "predictions": "", "sealed": True, "count": 20, "task": "classification", "iteration": 150,
    }  # fmt: skip
    assert "clear" not in told.stderr
    raw = (classes.folder / "p.sealed").read_bytes()
    assert b"probability" not in raw  # two letters may be in ciphertext by chance
    assert b"middle" not in raw
    key = classes.world.key
    assert (
        call("open", classes.folder / "p.sealed", "--key", key, "-o", classes.folder / "p.csv").code
        == 0
    )
    with (classes.folder / "p.csv").open(newline="") as file:
        lines = [*csv.DictReader(file)]
    assert [line["id"] for line in lines] == [row["id"] for row in table]
    right = sum(line["prediction"] == row["kind"] for line, row in zip(lines, table, strict=True))
    assert right >= 15
    for line in lines:
        chances = {name: float(line[f"probability {name}"]) for name in ("high", "low", "middle")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert max(chances, key=lambda name: chances[name]) == line["prediction"]
    assert call("test", classes.cfg, "--data", new, *classes.run).code == 1


def test_predictions_in_clear_say_so(classes: Way, numbers: Way) -> None:
    """The same numbers as sealed, in both formats."""
    for way in (classes, numbers):
        told = way.predict(way.part("test"), "clear.npz")
        assert "in clear, a declassification" in told.stderr
        assert (way.folder / "clear.npz").stat().st_mode & 0o777 == 0o600
        way.predict(way.part("test"), "again.sealed")
        key = way.world.key
        call("open", way.folder / "again.sealed", "--key", key, "-o", way.folder / "again.npz")
        with np.load(way.folder / "clear.npz") as one, np.load(way.folder / "again.npz") as other:
            assert sorted(one) == sorted(other)
            assert all(np.array_equal(one[name], other[name]) for name in one)
            assert ("y" in one) == (way is classes)
            assert len(one["ids"]) == len(one["x"]) == 90
    found = plinius.predict(
        numbers.cfg, numbers.part("test"), numbers.region, plinius.load_key(numbers.world.key)
    )
    assert found.classes is None
    assert found.outputs.shape == (90, 1)


def test_another_list_of_classes_or_columns_is_refused(classes: Way) -> None:
    """Classes that would shift, columns in another order or scale: never silently."""
    folder = classes.folder
    target = ["--target", "kind", "--id", "id", "--drop", "cost"]
    table = [row for row in rows(40, 2) if row["kind"] != "high"]
    shifted = write(folder / "two.csv", table)
    done(*classes.seal("two.sealed"), "--csv", shifted, *target)
    refused = classes.test(folder / "two.sealed")
    assert refused.code == 1
    assert "two.sealed does not have the classes that the network was trained on" in (
        refused.stderr
    )
    done(*classes.seal("raw.sealed"), "--csv", folder / "t.csv", *target)
    for refused in (
        classes.test(folder / "raw.sealed"), classes.predict(folder / "raw.sealed", "x.csv")
    ):  # fmt: skip
        assert refused.code == 1
        assert "has columns of another scale" in refused.stderr
    swapped = write(
        folder / "swapped.csv",
        [{"id": r["id"], "b": r["b"], "a": r["a"], "kind": r["kind"]} for r in rows(40, 2)],
    )
    call(*classes.seal("swapped.sealed"), "--csv", swapped, "--target", "kind", "--id", "id")
    assert "does not have the columns that the network was trained on" in (
        classes.test(folder / "swapped.sealed").stderr
    )
    like = ["--target", "kind", "--id", "id", "--like", classes.part("train")]
    done(*classes.seal("like.sealed"), "--csv", swapped, *like)
    assert classes.test(folder / "like.sealed").json["accuracy"] > 0.7


def test_wrong_usage_makes_nothing(classes: Way) -> None:
    """Another suffix is refused before anything is read; a name that is taken stays."""
    before = tree(classes.folder)
    assert "-o ends in .sealed" in classes.predict(classes.part("test"), "p.txt").stderr
    opened = ["open", classes.part("test"), "--key", classes.world.key, "-o"]
    assert call(*opened, classes.folder / "p.pdf").code == 2
    assert call(*opened, classes.folder / "t.csv").code == 1
    assert classes.predict(classes.part("test"), "t.csv").code == 1
    assert tree(classes.folder) == before


@pytest.mark.parametrize("comment", [True, False])
def test_a_key_file_given_as_a_table_is_not_shown(
    comment: bool, world: World, tmp_path: Path
) -> None:
    """Its line would else be named as a column."""
    table, lines = tmp_path / "t.csv", world.key.read_text().splitlines()
    table.write_text("\n".join(lines if comment else lines[-1:]) + "\n")
    told = call("seal", "--csv", table, "--target", "x", "--key", world.key, "-o", tmp_path / "s")
    assert told.code == 1
    assert "is a key file, not a table" in told.stderr
    assert lines[-1].split()[-1][:12] not in told.stderr
