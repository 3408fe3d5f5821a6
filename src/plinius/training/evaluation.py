"""The network of a mirrored run, and its accuracy on a sealed dataset."""

from pathlib import Path

import numpy as np
import torch

from plinius.darknet.cfg import read_cfg
from plinius.darknet.network import Network
from plinius.data.records import Progress
from plinius.data.sealed_dataset import SealedDataset
from plinius.mirror.run_identity import require_same_run
from plinius.snapshot import Snapshot
from plinius.state.restore import load_tensors
from plinius.state.tensor_memory import tensor_of
from plinius.training.batches import Batches

_BATCH = 256


def trained_network(cfg_path: Path, snapshot: Snapshot) -> Network:
    """The network of a cfg with the parameters of a snapshot, in evaluation mode.

    Raises CfgError, StorageError, and MismatchError if the run of the snapshot has another cfg.
    """
    cfg = read_cfg(cfg_path)
    require_same_run({"cfg": cfg.sha256}, {"cfg": snapshot.identity.get("cfg")})
    network = Network(cfg)
    stored = {t.name: tensor_of(t) for t in snapshot.tensors if t.name.startswith("model/")}
    load_tensors(network, "model", stored)
    network.eval()
    return network


def accuracy(network: Network, dataset: SealedDataset, progress: Progress | None = None) -> float:
    """The fraction (0 to 1) of records whose largest output is at the label (top-1 accuracy).

    `progress` counts records. Raises SourceError if the dataset does not fit, SealError.
    """
    batches = Batches(dataset, network.input_shape, network.truths)
    count, correct = dataset.header.count, 0
    with torch.inference_mode():
        for start in range(0, count, _BATCH):
            x, truth = batches.open(np.arange(start, min(start + _BATCH, count)))
            correct += int((network(x).argmax(1) == truth.argmax(1)).sum())
            if progress:
                progress(min(start + _BATCH, count), count)
    return correct / count
