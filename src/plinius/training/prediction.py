"""What a mirrored network says of a sealed dataset: sealed for its owner, or in clear."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from plinius.data.records import ABSENT, ArraySpec, Progress, Record, Source
from plinius.data.sealed_dataset import seal_dataset
from plinius.errors import SourceError
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.sources.clear_files import SUFFIXES, write_clear
from plinius.sources.table import Task
from plinius.training.evaluation import Opened, Require, ends_in_probabilities, outputs
from plinius.training.torch_dataset import SealedDataset as TorchDataset

_TINY = 1e-3  # of rounding, as in bfloat16
_FLOAT, _CLASS = np.dtype("<f4"), ArraySpec(np.dtype("<u4"), ())


@dataclass(frozen=True)
class Predictions:
    """Predictions for the records of a dataset, in order.

    `outputs` is float32 (records, outputs): probabilities of the classes if `probabilities`, else
    what the last layer gives. `classes` is the class of the largest output of each record, int64
    (records,), or None for a regression. `class_names` is empty if unknown; `ids` are the owner's
    names of the records, or their numbers.
    """

    outputs: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    ids: list[str]
    probabilities: bool
    iteration: int

    @classmethod
    def of(
        cls,
        outputs: Tensor,
        dataset: TorchDataset,
        task: Task = "classification",
        *,
        class_names: Sequence[str] = (),
        iteration: int = 0,
    ) -> "Predictions":
        """The predictions of a model of your own: `outputs` (records, outputs) for a dataset.

        For a classification they are the probabilities of the classes. `class_names` are those of
        the dataset if none are given. `iteration` says how far the model was trained. Raises
        SourceError if they are not two-dimensional, one row for each record, and finite, and for
        probabilities that are not from 0 to 1.
        """
        found = outputs.detach().cpu().float()
        names = tuple(class_names) or dataset.class_names
        if found.ndim != 2 or len(found) != len(dataset) or not bool(found.isfinite().all()):
            raise SourceError(
                f"Outputs of shape {tuple(found.shape)} are no predictions for {len(dataset)} "
                "records, or are not finite",
                "Give one row of finite numbers for each record, in order",
            )
        if task == "regression":
            return cls(found.numpy(), None, (), dataset.ids, False, iteration)
        if names and len(names) != found.shape[1]:
            raise SourceError(
                f"There are {found.shape[1]} outputs, but {len(names)} class names",
                "Give the probability of each class",
            )
        if not -_TINY <= float(found.min()) <= float(found.max()) <= 1 + _TINY:
            raise SourceError(
                f"The outputs for {dataset} are no probabilities: some are not from 0 to 1",
                "Apply softmax(1) to what the model gives",
            )
        classes = found.numpy().argmax(1)
        return cls(found.numpy(), classes, names, dataset.ids, True, iteration)

    def save(self, path: str | Path, key: OwnerKey | None = None) -> None:
        """Write the new file `path`: in clear if it ends in .csv or .npz, else sealed with `key`.

        In clear is a declassification: whoever has the file reads the predictions. Raises
        StorageError, KeyFileError if it is to be sealed and `key` is no owner's key.
        """
        path = Path(path)
        if path.suffix in SUFFIXES:
            write_clear(self._source(), path)
        else:
            seal_dataset(self._source(), key, path)  # type: ignore[arg-type]

    def _source(self) -> Source:
        count, width = self.outputs.shape
        names = self.class_names or tuple(str(number) for number in range(width))
        columns: list[Json]
        if self.classes is None:
            columns = [
                {"name": "prediction" if width == 1 else f"prediction{n}"} for n in range(width)
            ]
        else:
            what = "probability" if self.probabilities else "output"
            columns = [{"name": f"{what} {name}"} for name in names]
        about: dict[str, Json] = {"columns": columns, "ids": [*self.ids]}
        if self.classes is not None:
            about["target"] = {"name": "prediction", "task": "classification"}

        def records() -> Iterator[Record]:
            empty = np.zeros(0, np.uint8)
            for index in range(count):
                label = empty if self.classes is None else self.classes[index, ...].astype("<u4")
                yield self.outputs[index], label

        label = ABSENT if self.classes is None else _CLASS
        classes = 0 if self.classes is None else width
        sample = ArraySpec(_FLOAT, (width,))
        return Source(
            "the predictions", count, sample, label, records, classes, self.class_names, about
        )


def predict(
    cfg: str | Path,
    data: str | Path,
    region: str | Path,
    key: OwnerKey,
    *,
    run_key: OwnerKey | None = None,
    require: Require = lambda snapshot, header: None,
    progress: Progress | None = None,
    commit: str = "newest",
) -> Predictions:
    """What the network of `cfg`, mirrored in `region`, says of the sealed dataset `data`.

    The dataset may have labels, which are not used, or none. `run_key` opens the run if `key`,
    which opens the datasets, is another one. `require` is asked before a record is
    opened. `progress` counts records. `commit` is the name or number of a kept commit. Raises
    MismatchError if the region holds another run, or the dataset other classes or columns than the
    one in the region; CfgError, SourceError, KeyFileError, SealError, FormatError, StorageError.
    """
    opened = Opened.of(cfg, data, region, key, run_key, require, commit)
    network, dataset = opened.network, opened.dataset
    found = np.empty((dataset.header.count, network.truths), _FLOAT)
    at = 0
    for y in outputs(network, dataset, progress):
        found[at : at + len(y)] = y.float().numpy()
        at += len(y)
    probabilities = ends_in_probabilities(network)
    labelled = probabilities or opened.known.labels_are_classes
    classes: Any = found.argmax(1) if labelled else None
    names = opened.class_names if len(opened.class_names) == network.truths else ()
    return Predictions(found, classes, names, opened.ids, probabilities, opened.snapshot.iteration)
