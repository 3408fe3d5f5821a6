"""The benchmarks: short runs of the real thing, and what becomes of their figures."""

import json
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.world import CFG, World
from plinius.cli.main import main
from plinius.data.sealed_dataset import seal_dataset
from plinius.errors import StorageError
from plinius.keys import OwnerKey
from plinius.sources.npz import npz_source
from plinius_benchmarks import (
    batch,
    crash,
    iteration,
    loaders,
    mirror,
    networks,
    overhead,
    paper,
    sps,
)
from plinius_benchmarks.machine import describe_with_torch
from plinius_benchmarks.page import write_page
from plinius_benchmarks.plots import plot
from plinius_benchmarks.report import Report, Target, ratio, spread
from plinius_benchmarks.tables import tables


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workloads of milliseconds."""

    def small() -> overhead.Workload:
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
        optimizer = torch.optim.AdamW(model.parameters())
        x = torch.rand(8, 64)
        return overhead.Workload("small", model, optimizer, lambda: model(x).sum().backward())

    monkeypatch.setattr(overhead, "_resnet", small)
    monkeypatch.setattr(overhead, "_transformer", small)
    monkeypatch.setattr(networks.Transformer, "__init__", _small_transformer)


_WHOLE = networks.Transformer.__init__


def _small_transformer(self: networks.Transformer) -> None:
    _WHOLE(self, width=256, layers=2, words=1024)


def checked(report: Report, folder: Path) -> Report:
    """A report that survives JSON, prints, draws, and shows on a page."""
    again: Report = json.loads(json.dumps(report))
    picture = folder / f"{report['name']}.png"
    plot(again, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [table.row_count for table in tables(again)] == [
        len(report["rows"]),
        len(report["targets"]),
    ]
    page = folder / "report.html"
    write_page([again], {report["name"]: picture}, page)
    text = page.read_text()
    assert all(escape(target["what"]) in text for target in report["targets"])
    assert "data:image/png;base64" in text
    return again


def test_an_iteration_is_measured_against_the_loop_by_hand(tmp_path: Path) -> None:
    """Every contestant, the parts of the trainer's iteration, and the targets."""
    cfg, key, data = tmp_path / "mnist.cfg", tmp_path / "owner.key", tmp_path / "mnist.sealed"
    mnist = Path(__file__).parents[2] / "demo/mnist.cfg"
    cfg.write_text(mnist.read_text().replace("batch=128", "batch=2"))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 1, 28, 28), np.uint8)
    np.savez(tmp_path / "mnist.npz", x=images, y=np.arange(8, dtype=np.int64))
    owner = OwnerKey.generate()
    owner.save(key)
    seal_dataset(npz_source(tmp_path / "mnist.npz", 10), owner, data)
    torch.use_deterministic_algorithms(False)  # another test of this process may have chosen it
    report = iteration.run_iteration(cfg, data, key, [tmp_path], rounds=1)
    assert not torch.are_deterministic_algorithms_enabled()
    checked(report, tmp_path)
    rows = {row["who"]: row for row in report["rows"]}
    assert {iteration.TRAINER, iteration.PLAIN, iteration.TUNED, iteration.TORCH_NORM} <= {*rows}
    assert {*rows[iteration.TRAINER]["ratios"]} == {iteration.PLAIN, iteration.TUNED}
    assert 0 < rows[f"{iteration.TRAINER}: mirror_out"]["share"] < 1
    assert len(report["targets"]) == 4


def test_the_loop_by_hand_is_of_one_network(world: World, tmp_path: Path) -> None:
    """Another network is refused."""
    with pytest.raises(StorageError, match=r"another network than demo/mnist\.cfg"):
        iteration.run_iteration(world.cfg, world.data, world.key, [tmp_path], rounds=1)


def test_mirror_measures_every_rival(tmp_path: Path) -> None:
    """Each saves and restores the same bytes; the mirror's time is split."""
    report = checked(mirror.run_mirror([tmp_path], (1,), rounds=1), tmp_path)
    who = [row["who"] for row in report["rows"]]
    assert len(who) == len({*who}) >= 12
    rows = {row["who"]: row for row in report["rows"]}
    assert all(row["save"][0] > 0 for row in rows.values())
    parts = rows["plinius"]["parts"]
    assert 0 < parts["save"]["share"] < 1
    assert 0 < parts["restore"]["share"] < 1
    assert [*tmp_path.glob("plinius-bench-*")] == []


def test_loaders_measures_sealed_and_plain_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """By both loaders, over the end of an epoch; waiting is a part of the iteration."""
    monkeypatch.setattr(loaders, "_RECORDS", 256)
    small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    report = loaders.run_loaders(3, lambda: small)
    assert [row["loader"] for row in report["rows"]] == ["DataLoader", "ResumableLoader"]
    for row in report["rows"]:
        assert 0 < row["waiting"]["plain"][0] < row["iteration"][0]
    assert {target["bound"] for target in report["targets"]} == {0.01}


def test_batch_measures_both_ways(tmp_path: Path) -> None:
    """The target is about batches of 128."""
    report = checked(batch.run_batch((8, 128), rounds=1), tmp_path)
    assert [row["batch"] for row in report["rows"]] == [8, 128]
    assert len(report["targets"]) == 1


def test_overhead_measures_every_way(small_models: None, world: World, tmp_path: Path) -> None:
    """Each model in each place, and the frozen base."""
    report = checked(overhead.run_overhead(world.cfg, [tmp_path], rounds=1), tmp_path)
    ways = {overhead.OFF, overhead.ON, overhead.BESIDE, overhead.TENTH}
    assert {row["way"] for row in report["rows"]} == ways
    assert len(report["rows"]) == 3 * len(ways)
    frozen = report["targets"][-1]
    assert "frozen base" in frozen["what"]
    assert 0 < frozen["value"] < 0.2


def test_crash_kills_and_compares(world: World, tmp_path: Path) -> None:
    """A killed run ends with the digest of an uninterrupted one; what is lost is run again."""
    cfg = tmp_path / "long.cfg"
    cfg.write_text(CFG.replace("max_batches=24", "max_batches=300"))
    report = checked(crash.run_crash(cfg, world.data, world.key, 40, 1), tmp_path)
    whole, kept, forgetful = report["rows"]
    assert report["targets"][0]["met"]
    assert whole["iterations"] == 40
    assert len(kept["kills"]) == len(kept["lost"]) == 1
    assert forgetful["iterations"] > 40
    assert whole["losses"][-1] == kept["losses"][-1] == forgetful["losses"][-1]


def test_a_trainer_that_fails_is_reported(world: World, tmp_path: Path) -> None:
    """With its error message."""
    with pytest.raises(StorageError, match="The trainer failed: .*No such file"):
        crash.run_crash(world.cfg, tmp_path / "none", world.key, 10, 1)


def test_the_sweep_is_the_papers() -> None:
    """Layers as in big5.cfg to big45.cfg: 11 to 105 MB."""
    sizes = []
    for layers in (5, 45):
        tensors = networks.big(layers).state_dict().values()
        sizes.append(round(sum(t.numel() * t.element_size() for t in tensors) / 1e6))
    assert sizes == [11, 105]
    assert len(mirror.LAYERS) == len(paper.FIG_7_MB) == 9


def test_a_ratio_is_the_median_of_those_within_the_rounds() -> None:
    """Not that of the medians."""
    assert ratio([1, 2, 9], [1, 1, 3]) == 2
    assert spread([3, 1, 2]) == [1, 2, 3]
    assert Target("x", 1, 1).met
    assert not Target("x", 1.1, 1, at_least=False).met


def test_the_command_answers_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object on stdout, and a plot where one is wanted."""
    monkeypatch.setattr(batch, "SHORT", (8,))
    monkeypatch.setattr(batch, "SHORT_ROUNDS", 1)
    picture = tmp_path / "batch.png"
    told = CliRunner().invoke(main, ["bench", "batch", "--short", "--json", "--plot", str(picture)])
    assert told.exit_code == 0
    assert json.loads(told.stdout)["name"] == "batch"
    assert picture.exists()


def test_everything_makes_one_page(
    small_models: None, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JSON file and a plot of each, report.html."""
    monkeypatch.setattr(mirror, "SHORT", (1,))
    monkeypatch.setattr(batch, "SHORT", (8,))
    monkeypatch.setattr(crash, "run_crash", _crashed)
    monkeypatch.setattr(iteration, "run_iteration", _iterated)
    monkeypatch.setattr(sps, "run_sps", _swapped)
    for module in (mirror, batch, overhead):
        monkeypatch.setattr(module, "SHORT_ROUNDS", 1)
    using = ["--cfg", world.cfg, "--data", world.data, "--key", world.key, "--place", tmp_path]
    out = tmp_path / "out"
    arguments = ["bench", "all", "--short", *map(str, using), "-o", str(out)]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0, told.output
    made = {path.name for path in out.iterdir()}
    names = ("sps", "iteration", "mirror", "batch", "crash", "overhead")
    assert made == {f"{n}.{s}" for n in names for s in ("json", "png")} | {"report.html"}


def _iterated(*_: object) -> Report:
    """What run_iteration finds, which has a test of its own."""
    row = {"who": iteration.TRAINER, "iteration": [1, 2, 3], "ratios": {}}
    return {
        "name": "iteration", "title": "an iteration", "machine": describe_with_torch(),
        "rows": [row], "targets": [], "notes": [],
    }  # fmt: skip


def _swapped(_: float, **__: object) -> Report:
    """What run_sps finds, which has tests of its own."""
    row = {
        "granularity": "PROCESS", "pwb": "clwb", "form": "plain", "swaps": 2, "swaps_per_us": 1.0,
        "slowest_slice": 1.0, "fastest_slice": 1.0, "fences": 4, "flushed_lines": 8,
        "bytes_written": 64,
    }  # fmt: skip
    return {
        "name": "sps", "title": "swaps", "machine": describe_with_torch(),
        "rows": [row], "targets": [], "notes": [],
    }  # fmt: skip


def _crashed(*_: object) -> Report:
    """What run_crash finds, which has a test of its own and takes a while."""
    row = {
        "way": crash.UNINTERRUPTED,
        "iterations": 2,
        "losses": [2.0, 1.0],
        "kills": [],
        "lost": [],
    }
    restart = {"way": "restart", "place": "PAGE", "import": [1], "start": [2], "beyond": 1.0}
    return {
        "name": "crash", "title": "killed", "machine": describe_with_torch(),
        "rows": [row, restart], "targets": [Target("equal", 1, 1).row()], "notes": [],
    }  # fmt: skip


def test_the_network_of_fig_8_has_five_convolutions() -> None:
    """As the paper says; the last is the classifier's."""
    cfg = networks.five_convolutions(8)
    kinds = [section.kind for section in cfg.sections]
    assert kinds.count("convolutional") == 5
