"""Sealing from Python: any dataset or table, split, measured, and nothing left after a refusal."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import plinius
from plinius.errors import KeyFileError, SourceError, StorageError
from plinius.keys import OwnerKey
from plinius.sources.text import text_source

KEY = OwnerKey.generate()


class Pairs(Dataset[Any]):
    """A dataset whose items are these."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def opened(path: Path) -> plinius.SealedDataset:
    return plinius.SealedDataset.open(path, KEY)


def test_a_torch_dataset_is_sealed_as_it_is(tmp_path: Path) -> None:
    """Tensors, arrays and numbers; the records come back with the same values."""
    x, y = torch.randn(7, 2, 3, requires_grad=True), torch.arange(7) % 2
    (part,) = plinius.seal(TensorDataset(x, y), KEY, tmp_path / "d", class_names=("a", "b"))
    back = opened(part.path)
    assert torch.equal(back.batch(range(7))[0], x.detach())
    assert torch.equal(back.batch(range(7))[1], y)
    assert (back.classes, back.class_names) == (2, ("a", "b"))
    assert part.survey.report()["labels"] == {"a": 4, "b": 3}
    plinius.seal(Pairs([(np.ones(2, bool), 3), (np.zeros(2, bool), 1)]), KEY, tmp_path / "e")
    assert opened(tmp_path / "e").batch([0, 1])[1].tolist() == [3, 1]
    plinius.seal(Pairs([np.ones(2, ">i4")]), KEY, tmp_path / "f")
    assert opened(tmp_path / "f")[0][0].tolist() == [1, 1]


def test_what_is_measured_is_so(tmp_path: Path) -> None:
    """Over more records than a block, compared with NumPy."""
    x = np.random.default_rng(0).normal(1e6, 2, (1000, 3))
    (part,) = plinius.seal(Pairs(list(x)), KEY, tmp_path / "d")
    assert np.allclose(part.survey.mean, x.mean(0), rtol=1e-12)
    assert np.allclose(part.survey.std, x.std(0), rtol=1e-9)
    values: Any = part.survey.report()["values"]
    assert np.allclose([*values.values()], [x.min(), x.mean(), x.std(), x.max()])


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "the Pairs is empty."),
        ([(1, 2, 3)], "Item 0 of the Pairs has 3 parts."),
        ([("text", 1)], "Item 0 of the Pairs holds a str that is no array of numbers."),
        ([(object(), 1)], "Item 0 of the Pairs holds a object that is no array"),
        ([(torch.zeros(2, dtype=torch.bfloat16), 1)], "Item 0 of the Pairs holds a Tensor that"),
        ([(np.zeros(2, complex), 1)], "Item 0 of the Pairs holds a ndarray that is no array"),
        ([(0.5, 1), (np.zeros(2), 1)], "The sample of record 1 of the Pairs is float64 (2,), not"),
        ([(0.5, 1), (0.5, -1)], "The label of record 1 of the Pairs is -1."),
        ([(0.5, 1), (0.5, 4)], "The label of record 1 of the Pairs is 4, but there are 3 classes."),
        (
            [(0.5, 1), (float("nan"), 1)],
            "The sample of record 1 of the Pairs holds nan at place 0.",
        ),
        (
            [(np.array([1, 2, np.inf]), 1)],
            "The sample of record 0 of the Pairs holds inf at place 2.",
        ),
        ([(0.5, 0.5), (0.5, float("nan"))], "The label of record 1 of the Pairs holds nan"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, items: list[Any], sentence: str
) -> None:
    """With a sentence, and no file is left."""
    with pytest.raises(SourceError) as caught:
        plinius.seal(Pairs(items), KEY, tmp_path / "d.sealed", classes=3)
    assert str(caught.value).startswith(sentence)
    assert os.listdir(tmp_path) == []


def test_an_arrow_table_is_split_and_scaled(tmp_path: Path) -> None:
    """Each part in a file of its own, named after it, with its ids."""
    n = 100
    table = pa.table(
        {"i": [f"p{k}" for k in range(n)], "x": range(n), "y": [k % 2 for k in range(n)]}
    )
    parts = plinius.seal(
        table, KEY, tmp_path / "d.sealed",
        target="y", ids="i", split=(0.8, 0.2), stratify=True, standardize=True, seed=5,
    )  # fmt: skip
    assert [part.path.name for part in parts] == ["d.train.sealed", "d.test.sealed"]
    assert [part.header.count for part in parts] == [80, 20]
    assert parts[0].column_labels == ["x"]
    assert abs(float(parts[0].survey.mean[0])) < 1e-6
    ids = [opened(part.path).ids for part in parts]
    assert sorted(ids[0] + ids[1]) == sorted(f"p{k}" for k in range(n))
    column = opened(parts[1].path).batch(range(20))[0][:, 0].numpy()
    numbers = np.array([int(name[1:]) for name in ids[1]])
    assert np.corrcoef(column, numbers)[0, 1] > 0.999999
    (one,) = plinius.seal(
        table.slice(7, 1), KEY, tmp_path / "new.sealed", ids="i", like=parts[0].path
    )
    assert opened(one.path).ids == ["p7"]


def test_after_a_refusal_no_part_is_left(tmp_path: Path) -> None:
    """Not even those that were sealed before the one that failed."""
    bad = Pairs([(float(k), 0) for k in range(9)] + [(float("nan"), 0)])
    for seed in range(4):  # the bad record falls into either part
        with pytest.raises(SourceError, match="holds nan"):
            plinius.seal(bad, KEY, tmp_path / "d.sealed", split=(0.5, 0.5), seed=seed)
        assert os.listdir(tmp_path) == []
    (tmp_path / "d.test.sealed").touch()
    with pytest.raises(StorageError, match=r"d.test.sealed exists already"):
        plinius.seal(Pairs([0.5] * 9), KEY, tmp_path / "d.sealed", split=(0.5, 0.5))
    assert os.listdir(tmp_path) == ["d.test.sealed"]


def test_options_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    """Columns of what is no table, a scale of images, a stratified whole, bytes as a key."""
    data = Pairs([(0.5, 1)])
    for options, sentence in (
        ({"target": "y"}, "is no table"),
        ({"standardize": True}, "is no table"),
        ({"stratify": True}, "Only a split can be stratified"),
    ):
        with pytest.raises(SourceError, match=sentence):
            plinius.seal(data, KEY, tmp_path / "d", **options)
    with pytest.raises(SourceError, match="Classes of a table are the values of its target"):
        plinius.seal(pa.table({"x": [1]}), KEY, tmp_path / "d", classes=3)
    with pytest.raises(KeyFileError):
        plinius.seal(data, bytes(32), tmp_path / "d")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_text_gives_each_byte_the_next_one(tmp_path: Path) -> None:
    """Samples follow one another; what fills no record at the end is counted."""
    (tmp_path / "t").write_bytes(bytes(range(30)))
    text = text_source(tmp_path / "t", 7)
    pairs = [(x.tolist(), y.tolist()) for x, y in text.source]
    assert [x for sample, _ in pairs for x in sample] == list(range(28))
    assert [y for _, label in pairs for y in label] == list(range(1, 29))
    assert text.left_out == 1
    with pytest.raises(SourceError, match="has 30 bytes, and a record needs 31"):
        text_source(tmp_path / "t", 30)
