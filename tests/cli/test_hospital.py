"""Data as a hospital has it: other encodings, wide numbers, dates, letters that are no ASCII."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.world import World, call

HEAD = "Patient Nr,MRN,Alter,Abteilung,Aufnahme,Befund\n"


def rows(count: int, mrn: int = 10) -> str:
    return HEAD + "".join(
        f"P-{n},{mrn + n},{40 + n % 30}.5,{('Chirurgie', 'Réa')[n % 2]},2024-01-{1 + n % 28:02},"
        f"{('gesund', 'erhöht')[n % 2]}\n"
        for n in range(count)
    )


@pytest.fixture
def seal(world: World, tmp_path: Path) -> list[object]:
    """The begin of the command that seals tmp_path/t.csv."""
    out = ["--key", world.key, "-o", tmp_path / "t.sealed", "--csv", tmp_path / "t.csv"]
    return ["seal", *out, "--target", "Befund"]


CLEAN = ["--id", "Patient Nr", "--drop", "Aufnahme", "--categorical", "Abteilung"]


def test_all_refused_columns_come_with_what_to_do(seal: list[object], tmp_path: Path) -> None:
    """In options that a shell takes as they are; a date is no category."""
    (tmp_path / "t.csv").write_text(rows(9))
    told = call(*seal)
    assert told.code == 1
    assert "3 columns of" in told.stderr
    assert "Name it with --categorical 'Patient Nr' or --drop 'Patient Nr'." in told.stderr
    assert "Make it a number, such as days since a date, or --drop Aufnahme." in told.stderr


def test_text_that_is_no_utf_8_is_refused(seal: list[object], tmp_path: Path) -> None:
    """As a category it would have become the text of Python's bytes."""
    (tmp_path / "t.csv").write_bytes(rows(9).encode("latin-1"))
    told = call(*seal, *CLEAN)
    assert told.code == 1
    assert "Column Abteilung of" in told.stderr
    assert "is no text in UTF-8. Save the table in UTF-8." in told.stderr


def test_integers_that_become_one_number_are_refused(seal: list[object], tmp_path: Path) -> None:
    """A record number above 2^53 was one constant after --standardize; a smaller one is sealed."""
    (tmp_path / "t.csv").write_text(rows(9, 2**53 + 1))
    told = call(*seal, *CLEAN)
    assert told.code == 1
    assert "has 9 different integers, of which float32 tells only" in told.stderr
    assert call(*seal, *CLEAN, "--drop", "MRN").code == 0
    (tmp_path / "t.sealed").unlink()
    (tmp_path / "t.csv").write_text(rows(9, 2**24 - 20))
    assert call(*seal, *CLEAN).code == 0


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_other_separators_are_named(
    sign: str, name: str, seal: list[object], tmp_path: Path
) -> None:
    """What a spreadsheet writes where a decimal number has a comma."""
    (tmp_path / "t.csv").write_text(rows(9).replace(",", sign).replace(".5", ",5"))
    told = call(*seal)
    assert told.code == 1
    assert f"separates its columns by {name}. Save it with commas" in told.stderr


def test_letters_are_shown_as_they_are(seal: list[object], tmp_path: Path) -> None:
    """In what a person reads; --json and a terminal without them have escapes."""
    (tmp_path / "t.csv").write_text(rows(9))
    assert '{"erhöht": 4, "gesund": 5}' in call(*seal, *CLEAN).stdout
    (tmp_path / "t.sealed").unlink()
    given = [sys.executable, "-m", "plinius", *map(str, [*seal, *CLEAN])]
    greek = os.environ | {"PYTHONIOENCODING": "iso8859-7"}  # it has neither ö nor é
    told = subprocess.run(given, capture_output=True, env=greek)
    assert told.returncode == 0, told.stderr
    assert rb'{"erh\u00f6ht": 4, "gesund": 5}' in told.stdout
    assert rb"column Abteilung=R\xe9a" in told.stdout
    (tmp_path / "t.sealed").unlink()
    assert json.loads(call(*seal, *CLEAN, "--json").stdout)["labels"]["erhöht"] == 4


def test_training_without_labels_is_refused_by_its_name(
    world: World, seal: list[object], tmp_path: Path
) -> None:
    """It was said to have 0 classes; no region is left."""
    (tmp_path / "t.csv").write_text(rows(9))
    del seal[-2:]
    assert call(*seal, *CLEAN, "--drop", "Befund").code == 0
    cfg = tmp_path / "net.cfg"
    cfg.write_text("[net]\nbatch=3\ninputs=4\n[connected]\noutput=2\n[softmax]\n")
    region = ["--region", tmp_path / "r", "--key", world.key, "--iterations", 1]
    told = call("train", cfg, "--data", tmp_path / "t.sealed", *region)
    assert told.code == 1
    assert "t.sealed has no labels to train on or to compare with. Seal it with" in told.stderr
    assert not (tmp_path / "r").exists()
