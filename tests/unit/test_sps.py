"""The SPS benchmark: what it runs, what it counts, how it is shown. Speed is not checked here."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from plinius.errors import StorageError
from plinius.pm.cacheline import pwb_names
from plinius.pm.medium import Granularity
from plinius.pm.open_medium import open_medium
from plinius.pm.region import Region
from plinius.structures.persistent_array import PersistentArray
from plinius_benchmarks import sps
from plinius_benchmarks.counting import CountingMedium
from plinius_benchmarks.paper import FIG_6
from plinius_benchmarks.plots import plot
from plinius_benchmarks.report import Report
from plinius_benchmarks.tables import tables

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run too short for figures."""
    folders = (MEMORY, tmp_path_factory.mktemp("disk"))
    return sps.run_sps(0.005, folders, sizes=(2, 8, 64))


def test_every_form_size_and_instruction_is_run_and_is_json(report: Report) -> None:
    """On each granularity there is; on disk fewer sizes."""
    found = {(r["granularity"], r["pwb"], r["form"], r["swaps"]) for r in report["rows"]}
    for pwb in pwb_names():
        for form in ("plain", "vectorised"):
            for swaps in (2, 8, 64):
                assert ("PROCESS", pwb, form, swaps) in found
    assert ("PAGE", "msync", "plain", 8) not in found
    assert json.loads(json.dumps(report)) == report
    assert all(row["swaps_per_us"] >= 0 for row in report["rows"])
    assert report["machine"]["cpu"]


def test_a_transaction_takes_four_fences_and_lines_as_its_places(report: Report) -> None:
    """Counted: two lines a swap written back in MAIN and in BACK, and three state words."""
    for row in report["rows"]:
        swaps = int(row["swaps"])
        assert row["fences"] == 4
        assert 4 * swaps * 0.9 < float(row["flushed_lines"]) <= 4 * swaps + 3
        assert float(row["bytes_written"]) <= 3 * 8 + swaps * (16 + 128)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Its folders are removed."""
    before = set(os.listdir(MEMORY))
    sps.run_sps(0.001, (MEMORY, tmp_path), sizes=(2,))
    assert not {name for name in set(os.listdir(MEMORY)) - before if "sps" in name}
    assert not os.listdir(tmp_path)


def test_both_forms_only_move_the_elements(tmp_path: Path) -> None:
    """After any of them the array holds what it held, elsewhere."""
    with Region.create(tmp_path / "r", 0, sps._TWIN_BYTES) as region:
        array = PersistentArray.create(region, "sps", sps.ELEMENTS)
        array[:] = np.arange(sps.ELEMENTS)
        for form in sps.FORMS:
            before = array[:]
            sps.transaction(form, region, array)(500)
            after = array[:]
            assert np.array_equal(np.sort(after), np.arange(sps.ELEMENTS))
            assert 900 < np.count_nonzero(before != after) <= 1000
        region.consistency_check()


def test_the_counting_medium_counts_what_passes(tmp_path: Path) -> None:
    """Lines that a range touches, bytes of stores and copies, fences; and changes nothing."""
    Region.create(tmp_path / "r", 0).close()
    medium = CountingMedium(open_medium(os.open(tmp_path / "r", os.O_RDWR)))
    medium.reset()
    medium.store(9000, b"12345678")
    medium.flush(9020, 10)
    medium.copy(12288, 8192, 129)
    medium.write(4096, b"x" * 64)
    medium.store_word(4096, 7)
    medium.fence()
    words = np.array([0, 8, 64])
    medium.store_words(4096, 4096, words, words.view(np.uint64))
    medium.swap_words(4096, 4096, words, words[::-1].copy())
    medium.flush_lines(4096, 4096, np.array([0, 1]))
    medium.copy_lines(8192, 4096, 4096, np.array([0]))
    assert medium.counts() == {
        "fences": 1,
        "flushed_lines": 2 + 3 + 1 + 2 + 1,
        "bytes_written": 8 + 129 + 64 + 8 + 24 + 48 + 64,
    }
    assert medium.read(8192, 8) == medium.read(4096, 8)
    assert medium.granularity in (Granularity.PAGE, Granularity.PROCESS)
    medium.close()


def test_the_table_and_the_plot_stand_beside_the_paper(report: Report, tmp_path: Path) -> None:
    """Every point has a line; the paper's columns are of the eleven sizes."""
    console = Console(width=200, record=True, file=io.StringIO())
    (table,) = tables(report)
    console.print(table)
    text = console.export_text()
    assert text.count("vectorised") == len(report["rows"]) // 2
    assert "0.4 (1.6)" in text
    plot(report, tmp_path / "sps.png")
    assert (tmp_path / "sps.png").read_bytes().startswith(b"\x89PNG")
    assert all(len(rates) == len(sps.SIZES) for form in FIG_6.values() for rates in form.values())


@pytest.mark.parametrize("name", ["missing/sps.png", "sps.nonsense"])
def test_a_plot_that_cannot_be_written_is_refused(
    report: Report, tmp_path: Path, name: str
) -> None:
    """With the file's name."""
    with pytest.raises(StorageError, match="Cannot write .*sps"):
        plot(report, tmp_path / name)
