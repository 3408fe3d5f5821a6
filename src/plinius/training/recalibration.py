"""Rolling statistics of batch normalisation, computed from training data.

Darknet's start at 0 and move 1 % a pass: after 100 passes they have gone 63 % of the way. Until
about 460 passes a network may know more than its evaluation shows.
"""

from typing import cast

import torch

from plinius.darknet.cfg import Cfg
from plinius.darknet.network import Network
from plinius.darknet.norm import MOMENTUM
from plinius.data.records import Progress
from plinius.data.sealed_dataset import SealedDataset
from plinius.jsonvalue import Json
from plinius.snapshot import Snapshot
from plinius.training.batches import Batches, by_time
from plinius.training.sampler import Sampler

PASSES = 100
SETTLED = 0.99


def settled(cfg: Cfg, network: Network, identity: dict[str, Json], iteration: int) -> float:
    """How far the rolling statistics of a run have come from 0 at an iteration, from 0 to 1.

    1 for a network without any, and for a run that began with weights that do not say how many rows
    they have seen.
    """
    if not _normalised(network):
        return 1.0
    seen = cast(int, identity.get("seen", 0))
    if "weights" in identity and not seen:
        return 1.0
    passes = seen // cfg.net.sub_batch + iteration * cfg.net.subdivisions
    return 1 - (1 - MOMENTUM) ** passes


def lag(cfg: Cfg, network: Network, snapshot: Snapshot) -> str | None:
    """A sentence that says that the rolling statistics lag, or None if they do not."""
    way = settled(cfg, network, snapshot.identity, snapshot.iteration)
    if way >= SETTLED:
        return None
    return (
        f"The rolling statistics of batch normalisation have come {100 * way:.0f} % of their way "
        "from 0: accuracy may lag (--recalibrate TRAINING_DATA computes them anew)."
    )


def recalibrate(
    network: Network, cfg: Cfg, dataset: SealedDataset, progress: Progress | None = None
) -> None:
    """Set the rolling statistics to the mean of those of up to 100 passes on training data.

    Passes are as large as in training, and normalise by their own statistics. The network is in
    evaluation mode afterwards. `progress` counts passes. Raises SourceError if the dataset does not
    fit, SealError.
    """
    network.require_batch()
    parts, steps = _normalised(network), network.time_steps
    batches = Batches(dataset, network)
    records = cfg.net.batch // cfg.net.subdivisions
    sampler = Sampler(dataset.header.count, records, 0)
    passes = min(PASSES, -(-dataset.header.count // records))
    sums = [torch.zeros_like(buffer, dtype=torch.float64) for _, buffer in parts]
    network.train()
    with torch.no_grad():
        for number in range(passes):
            for _, buffer in parts:
                buffer.zero_()
            x, _ = batches.open(sampler.indices(number))
            network(by_time(x, steps))
            for total, (calls, buffer) in zip(sums, parts, strict=True):
                # From 0, so many calls lead to this part of the way.
                total += buffer.double() / (1 - (1 - MOMENTUM) ** calls)
            if progress:
                progress(number + 1, passes)
        for total, (_, buffer) in zip(sums, parts, strict=True):
            buffer.copy_(total / passes)
    network.reset_states()
    network.eval()


def _normalised(network: Network) -> list[tuple[int, torch.Tensor]]:
    """(calls of its part in a pass, statistic) for each rolling statistic."""
    return [
        (getattr(layer, "steps", 1), buffer)
        for layer in network.sequence
        for _, part in layer.parts()
        if part.norm
        for buffer in (part.rolling_mean, part.rolling_variance)
    ]
