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
from plinius.training.batches import Batches, by_time

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
    """The fraction (0 to 1) of rows whose largest output is at the label (top-1 accuracy).

    Records are opened as many at a time as fit into memory; in a recurrent network each is a
    sequence that begins at state 0. `progress` counts records. Raises SourceError if the dataset
    does not fit, SealError, and CfgError for a network that does not end in classes.
    """
    network.require_classes()
    steps = network.time_steps
    batches = Batches(dataset, network.input_shape, network.truths, steps)
    count, correct = dataset.header.count, 0
    at_once = network.rows_that_fit(_BATCH * steps) // steps
    with torch.inference_mode():
        for start in range(0, count, at_once):
            x, truth = batches.open(np.arange(start, min(start + at_once, count)))
            network.reset_states()
            found = network(by_time(x, steps)).argmax(1)
            correct += int((found == by_time(truth, steps).argmax(1)).sum())
            if progress:
                progress(min(start + at_once, count), count)
    return correct / (count * steps)
