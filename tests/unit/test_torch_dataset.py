"""The sealed dataset as a PyTorch dataset: records, batches, workers, and where its key may go."""

import io
import pickle
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

import plinius
from plinius.data.records import ABSENT, ArraySpec, Source
from plinius.data.sealed_dataset import seal_dataset
from plinius.errors import KeyFileError, MismatchError, SealError, SourceError
from plinius.keys import OwnerKey

COUNT = 10
X = np.arange(COUNT * 6, dtype=np.float32).reshape(COUNT, 2, 3)
Y = (np.arange(COUNT) % 3).astype("<u2")


def sealed(path: Path, key: OwnerKey, labels: bool = True) -> Path:
    label = ArraySpec(np.dtype("<u2"), ()) if labels else ABSENT
    ys = Y if labels else np.zeros((COUNT, 0), np.uint8)
    source = Source(
        "numbers",
        COUNT,
        ArraySpec(np.dtype("<f4"), (2, 3)),
        label,
        lambda: zip(X, ys, strict=True),
        3 if labels else 0,
        ("a", "b", "c") if labels else (),
    )
    seal_dataset(source, key, path)
    return path


@pytest.fixture(name="key")
def _key() -> OwnerKey:
    return OwnerKey.generate()


def test_records_come_as_tensors(tmp_path: Path, key: OwnerKey) -> None:
    """Samples keep their dtype and shape, a class index is int64, negative numbers count back."""
    data = plinius.SealedDataset.open(sealed(tmp_path / "d", key), key)
    assert (len(data), data.classes, data.class_names) == (COUNT, 3, ("a", "b", "c"))
    x, y = data[4]
    assert (x.dtype, y.dtype, y.shape) == (torch.float32, torch.int64, ())
    assert torch.equal(x, torch.from_numpy(X[4]))
    assert int(y) == 1
    assert torch.equal(data[-1][0], data[COUNT - 1][0])
    xs, ys = data.batch([7, 2])
    assert torch.equal(xs, torch.from_numpy(X[[7, 2]]))
    assert ys.tolist() == [1, 2]
    assert [int(label) for _, label in data] == Y.tolist()
    for wrong in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError, match="has records 0 to 9"):
            data[wrong]


def test_a_dataset_without_labels_has_empty_ones(tmp_path: Path, key: OwnerKey) -> None:
    """So that the same loop takes it."""
    data = plinius.SealedDataset.open(sealed(tmp_path / "d", key, labels=False), key)
    assert data[0][1].shape == (0,)
    assert data.class_names == ()


def test_another_key_and_an_altered_record_are_refused(tmp_path: Path, key: OwnerKey) -> None:
    """The first when it is opened, the second when its batch is."""
    path = sealed(tmp_path / "d", key)
    with pytest.raises(KeyFileError):
        plinius.SealedDataset.open(path, OwnerKey.generate())
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    data = plinius.SealedDataset.open(path, key)
    data.batch(range(COUNT - 1))
    with pytest.raises(SealError, match=f"Record {COUNT - 1} of d does not open"):
        data.batch(range(COUNT))


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_worker_processes_open_records(tmp_path: Path, key: OwnerKey, context: str) -> None:
    """However they are started; a subset of the dataset goes with it."""
    data = Subset(plinius.SealedDataset.open(sealed(tmp_path / "d", key), key), range(8))
    loader = DataLoader(data, 4, num_workers=1, multiprocessing_context=context)
    labels = torch.cat([y for _, y in loader])
    assert labels.tolist() == Y[:8].tolist()


def test_the_key_gets_into_no_pickle(tmp_path: Path, key: OwnerKey) -> None:
    """Neither by pickle nor by torch.save, nor inside of something else."""
    data = plinius.SealedDataset.open(sealed(tmp_path / "d", key), key)
    for thing in (data, Subset(data, [1]), DataLoader(data), key):
        with pytest.raises(TypeError, match="only for a process that is being started"):
            pickle.dumps(thing)
        with pytest.raises(TypeError, match="only for a process that is being started"):
            torch.save(thing, io.BytesIO())


def test_predictions_of_a_model_are_sealed_with_names(tmp_path: Path, key: OwnerKey) -> None:
    """By class or by number, in order; outputs that do not belong to the dataset are refused."""
    data = plinius.SealedDataset.open(sealed(tmp_path / "d", key), key)
    chances = torch.rand(COUNT, 3, requires_grad=True).softmax(1)
    plinius.Predictions.of(chances, data, iteration=5).save(tmp_path / "p.sealed", key)
    found = plinius.SealedDataset.open(tmp_path / "p.sealed", key)
    x, y = found.batch(range(COUNT))
    assert torch.equal(x, chances.detach())
    assert torch.equal(y, chances.argmax(1))
    assert (found.class_names, found.ids) == (("a", "b", "c"), [str(n) for n in range(COUNT)])
    plinius.Predictions.of(chances, data, "regression").save(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().startswith("id,prediction0,prediction1,prediction2")
    for outputs, sentence in (
        (chances[:-1], "are no predictions for 10 records"),
        (chances[:, 0], "are no predictions for 10 records"),
        (chances / 0, "are not finite"),
        (chances * 2 - 1, "are no probabilities"),
        (chances[:, :2], "There are 2 outputs, but 3 class names"),
    ):
        with pytest.raises(SourceError, match=sentence):
            plinius.Predictions.of(outputs, data)


def test_the_predictions_of_the_readme_run(
    tmp_path: Path, key: OwnerKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines as they are, after a loop that mirrored its state; the owner opens the file."""
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(key = .*?)^```", page, flags=re.S | re.M)
    monkeypatch.chdir(tmp_path)
    key.save(tmp_path / "owner.key")
    x = torch.rand(30, 4)
    plinius.seal(TensorDataset(x), key, "patients.sealed")
    model = torch.nn.Linear(4, 3)
    with plinius.Mirror.open("run.region", key, {"model": model}) as mirror:
        mirror.mirror_out(7)
    wanted = model(x).softmax(1)
    fresh = torch.nn.Linear(4, 3)
    exec(lines, {"plinius": plinius, "torch": torch, "model": fresh, "state": {"model": fresh}})
    found = plinius.SealedDataset.open("predictions.sealed", key)
    chances, classes = found.batch(range(30))
    assert torch.allclose(chances, wanted)
    assert torch.equal(classes, wanted.argmax(1))


def test_a_resumable_loader_goes_on_in_sealed_data(tmp_path: Path, key: OwnerKey) -> None:
    """With the batches of a run that was not stopped, and only of the same dataset."""
    path = sealed(tmp_path / "d", key)

    def loader(of: Path) -> plinius.ResumableLoader:
        return plinius.ResumableLoader(plinius.SealedDataset.open(of, key), 4, seed=3)

    whole, first, second = loader(path), loader(path), loader(path)
    wanted = [x for _ in range(3) for x, _ in whole]
    got = [x for x, _ in islice(first, 1)]
    second.load_state_dict(first.state_dict())
    got += [x for _ in range(3) for x, _ in second]
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=False))
    with pytest.raises(MismatchError, match="The loader was at batches of dataset"):
        loader(sealed(tmp_path / "other", key)).load_state_dict(first.state_dict())
