"""Tables as a source: columns, classes, what is refused, and tables like one sealed before."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from plinius.data.records import ABSENT, Source
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import NotInstalledError, PliniusError, SourceError
from plinius.keys import OwnerKey
from plinius.sources.columns import columns_of, labels_of, standardized
from plinius.sources.table import TableOptions, read_table, table_source
from unit.refusals import refusal

KEY = OwnerKey.generate()
COLUMNS: dict[str, list[Any]] = {
    "name": ["ann", "bob", "cid", "dot"],
    "age": [31, 45, 28, 60],
    "dose": [0.5, 1.5, 2.5, 3.5],
    "town": ["ulm", "bonn", "ulm", "kiel"],
    "ill": ["yes", "no", "no", "yes"],
}


def table(**changed: Any) -> pa.Table:
    columns = {name: value for name, value in (COLUMNS | changed).items() if value is not None}
    return pa.table(columns)


def source(data: pa.Table | None = None, **options: Any) -> Source:
    asked = {"target": "ill", "categorical": ["town"], "ids": "name"} | options
    return table_source(table() if data is None else data, TableOptions(**asked), "t")


def arrays(of: Source) -> tuple[Any, Any]:
    xs, ys = zip(*of, strict=True)
    return np.stack(xs), np.stack(ys)


def sealed(of: Source, path: Path) -> SealedDataset:
    seal_dataset(of, KEY, path)
    return SealedDataset.from_file(path, KEY)


def test_columns_become_numbers_and_classes() -> None:
    """Categories one number each in sorted order; classes are the sorted values of the target."""
    made = source()
    x, y = arrays(made)
    assert x.tolist() == [
        [31, 0.5, 0, 0, 1],
        [45, 1.5, 1, 0, 0],
        [28, 2.5, 0, 0, 1],
        [60, 3.5, 0, 1, 0],
    ]
    assert (x.dtype, y.dtype, y.tolist()) == (np.float32, np.uint16, [1, 0, 0, 1])
    assert (made.classes, made.class_names) == (2, ("no", "yes"))
    assert made.about["ids"] == COLUMNS["name"]
    assert made.about["target"] == {"name": "ill", "task": "classification"}
    assert labels_of(columns_of(made.about, "t")) == [
        "age",
        "dose",
        "town=bonn",
        "town=kiel",
        "town=ulm",
    ]


def test_what_a_target_is_learned_as() -> None:
    """Floats are a regression, integers classes in order of numbers, unless the task says so."""
    numbers = [10, 9, 10, 2]
    classes = source(table(ill=numbers))
    assert (classes.class_names, arrays(classes)[1].tolist()) == (("2", "9", "10"), [2, 1, 2, 0])
    for made in (
        source(table(ill=numbers), task="regression"),
        source(table(ill=[10.0, 9, 10, 2])),
    ):
        _, y = arrays(made)
        assert (y.dtype, y.tolist(), made.classes) == (np.float32, [[10], [9], [10], [2]], 0)
    assert source(table(ill=[True, False, True, True])).class_names == ("False", "True")
    assert source(table(ill=None), target=None).label == ABSENT


def test_files_are_read_as_the_table_they_hold(tmp_path: Path) -> None:
    """CSV, with the mark that some programs put before it, and Parquet."""
    rows = [
        "name,age,dose,town,ill",
        *(",".join(map(str, row)) for row in zip(*COLUMNS.values(), strict=True)),
    ]
    (tmp_path / "t.csv").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    parquet.write_table(table(), tmp_path / "t.parquet")
    wanted = arrays(source())
    for kind in ("csv", "parquet"):
        read = read_table(tmp_path / f"t.{kind}", kind)  # type: ignore[arg-type]
        assert all(map(np.array_equal, arrays(source(read)), wanted))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\0\1\2", b"a,b\n1\n", b"PAR1" + bytes(40) + b"PAR1"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, kind: Any, content: bytes) -> None:
    """With a sentence, whatever the reader raises."""
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(SourceError):
        table_source(read_table(tmp_path / "t", kind), TableOptions(), "t")


@pytest.mark.parametrize(
    ("changed", "options", "sentence"),
    [
        ({}, {"target": "sick"}, "t has no column sick. It has name, age, dose, town, ill"),
        ({}, {"categorical": []}, "Column town of t holds string, not numbers. Name it with --cat"),
        (
            {},
            {"categorical": [], "ids": None},
            "2 columns of t are refused: Column name of t holds",
        ),
        ({"age": [1, None, 2, None]}, {}, "Column age of t is empty in rows 2, 4. Fill it in"),
        ({"town": ["a", None, "b", "c"]}, {}, "Column town of t is empty in row 2."),
        ({"ill": ["a", "b", "c", None]}, {}, "Column ill of t is empty in row 4."),
        ({"dose": [1.0, float("nan"), 1, 1]}, {}, "Column dose of t is not finite in row 2."),
        ({"dose": [1.0, 1, float("inf"), 1]}, {}, "Column dose of t is not finite in row 3."),
        ({"dose": [1.0, 1, 1e39, 1]}, {}, "Column dose of t is not finite in row 3."),
        ({"ill": [0.5, 1, float("nan"), 1]}, {}, "Column ill of t is not finite in row 3."),
        ({}, {"task": "regression"}, "Column ill of t holds string, not numbers."),
        ({}, {"drop": ["age", "dose", "town"], "categorical": []}, "t has no columns to learn"),
        ({}, {"drop": ["ill"]}, "A column is named for two purposes."),
        ({}, {"ids": "ill"}, "A column is named for two purposes."),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    changed: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    """With the column and the row."""
    assert refusal(lambda: source(table(**changed), **options)).startswith(sentence)


def test_too_many_classes_are_taken_for_numbers_to_learn() -> None:
    """An integer target such as an income is rarely 5,000 classes."""
    many = pa.table({"x": range(5000), "y": range(5000)})
    assert "for numbers, give --task regression" in refusal(
        lambda: table_source(many, TableOptions("y"), "t")
    )


def test_a_standardized_table_has_the_scale_of_its_first_part() -> None:
    """Categories stay as they are, a column that never changes keeps its scale."""
    parts = {"train": source(), "test": source(table(age=[0, 0, 0, 0], dose=[2.0, 2, 2, 2]))}
    made = standardized(parts)
    x, _ = arrays(made["train"])
    assert np.allclose(x[:, :2].mean(0), 0, atol=1e-6)
    assert np.allclose(x[:, :2].std(0), 1, atol=1e-6)
    assert np.array_equal(x[:, 2:], arrays(parts["train"])[0][:, 2:])
    other, _ = arrays(made["test"])
    ages = np.array(COLUMNS["age"])
    assert np.allclose(other[:, 0], -ages.mean() / ages.std())
    assert np.allclose(other[:, 1], 0)
    constant = standardized({"": source(table(age=[7, 7, 7, 7]))})[""]
    assert arrays(constant)[0][:, 0].tolist() == [0, 0, 0, 0]


def test_a_table_like_a_sealed_one_is_encoded_as_it_was(tmp_path: Path) -> None:
    """Columns by name, with its scales, categories and classes, though some do not occur."""
    before = sealed(standardized({"": source()})[""], tmp_path / "d")
    columns = ["ill", "town", "dose", "name", "age"]  # in another order, one row
    one = source(table().select(columns).slice(1, 1), like=before, categorical=[])
    (x,), (y,) = arrays(one)
    first, second = before.open_record(1)
    assert np.array_equal(x, first)
    assert int(y) == int(second) == 0
    assert one.class_names == ("no", "yes")
    unlabelled = source(table(ill=None), like=before, categorical=[], target=None)
    assert np.array_equal(arrays(unlabelled)[0], before.open_batch(range(4))[0])


def test_a_table_that_is_not_like_the_sealed_one_is_refused(tmp_path: Path) -> None:
    """Unknown categories and classes, missing columns, other options; never a silent shift."""
    before = sealed(source(), tmp_path / "d")
    how = {"like": before, "categorical": []}
    assert refusal(lambda: source(table(town=["a", "ulm", "ulm", "b"]), **how)) == (
        "Column town of t holds a, b, no category of the dataset that it shall be like. "
        "Its category is one of bonn, kiel, ulm."
    )
    assert "holds maybe, no class" in refusal(
        lambda: source(table(ill=["yes", "maybe", "no", "no"]), **how)
    )
    assert "has no column age, which the dataset" in refusal(lambda: source(table(age=None), **how))
    assert "says what the columns are" in refusal(lambda: source(like=before))
    plain = Source("p", 4, before.header.sample, before.header.label, source().records, 2)
    no_table = sealed(plain, tmp_path / "e")
    assert "is no table" in refusal(lambda: source(like=no_table, categorical=[]))


def test_without_pyarrow_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the package works without it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(NotInstalledError, match=r"Run pip install 'plinius\[tables\]'"):
        read_table(tmp_path / "t.csv", "csv")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_damaged_table_is_read_or_refused(tmp_path: Path, kind: Any) -> None:
    """Flipped, cut and repeated bytes: records, or one sentence; never another error."""
    data = table()
    if kind == "csv":
        with pa.OSFile(str(tmp_path / "whole"), "wb") as file:
            csv.write_csv(data, file)
    else:
        parquet.write_table(data, tmp_path / "whole")
    whole, random = (tmp_path / "whole").read_bytes(), np.random.default_rng(0)
    ends = set()
    for _ in range(200):
        raw = bytearray(whole)
        for at in random.integers(0, len(raw), random.integers(1, 4)):
            raw[at] = random.integers(0, 256)
        start, stop = sorted(random.integers(0, len(raw), 2))
        change = random.integers(0, 4)
        mutated = raw[:stop] if change == 1 else raw + raw[start:stop] if change == 2 else raw
        (tmp_path / "t").write_bytes(mutated)
        try:
            ends.add(len(list(source(read_table(tmp_path / "t", kind)))) > 0)
        except PliniusError:
            ends.add(False)
    assert False in ends
