"""What the Darknet examples share: train in a region, resumed if it was there, and test."""

from pathlib import Path

from place import Place

from plinius.data.sealed_dataset import SealedDataset
from plinius.slots import newest_snapshot
from plinius.training.detection import mean_average_precision
from plinius.training.evaluation import trained_network
from plinius.training.scores import scores
from plinius.training.trainer import Run, Settings


def finish(here: Place, cfg: Path, train: Path, test: Path) -> None:
    """Train up to the last iteration, and say how well the network does on the test part."""
    with Run(here.region, here.key, Settings(cfg, train, threads=1)) as run:
        print(f"begins after iteration {run.iteration}")
        run.train(here.iterations, 1, lambda metrics: None)
        digest = run.mirror.digest(run.iteration)
    network = trained_network(cfg, newest_snapshot(here.region, here.key))
    dataset = SealedDataset.from_file(test, here.key)
    if network.finds_boxes:
        print(f"mean average precision {mean_average_precision(network, dataset):.4f}")
    else:
        found = scores(network, dataset)
        print(f"accuracy {found['accuracy']:.4f}, {found.get('bits_per_token', 'no')} bits a token")
    print(f"digest {digest}")
