"""A program with 1 GB of state that prints a line after its first new iteration, for `crash`.

python -m plinius_benchmarks.restart REGION KEYFILE
"""

import sys
import time

import torch
from torch import nn

import plinius

WORDS, WIDTH = 2_000_000, 128  # float32: 1.02 GB


def main() -> None:
    """Resume from the mirror, make one iteration, print a line, and wait to be killed."""
    table = nn.Embedding(WORDS, WIDTH, sparse=True, _weight=torch.empty(WORDS, WIDTH))
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    state = {"table": table, "optimizer": optimizer}
    mirror = plinius.Mirror.open(sys.argv[1], plinius.load_key(sys.argv[2]), state)
    iteration = mirror.mirror_in()
    if iteration == 0:
        with torch.no_grad():
            table.weight.fill_(0.5)
        mirror.mirror_out(1)
    torch.autograd.backward(table(torch.arange(1000)).square().sum())
    optimizer.step()
    print(iteration + 1, flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main()
