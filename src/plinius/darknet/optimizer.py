"""Darknet's update rule as PyTorch's SGD."""

import torch

from plinius.darknet.cfg import Net
from plinius.darknet.network import Network


def make_optimizer(network: Network, net: Net) -> torch.optim.SGD:
    """The optimizer of [net]: call backward on the objective's mean over the `batch` of an update.

    Darknet keeps v and, for an update of B records with summed descent direction g, does
    v += g; v -= decay * B * w (weights only); w += rate / B * v; v *= momentum
    (darknet: convolutional_layer.c, update_convolutional_layer). With b = -v / B, before the last
    step, this is b = momentum * b - g / B + decay * w; w -= rate * b: PyTorch's SGD on the mean
    objective, whose first b is the gradient itself. The rate stands outside of b in both, so they
    agree under a changing rate as well. `set_rate` gives it before each step. Momentum is there
    from the start as zeros, which gives the same first step as none.
    """
    groups = network.parameter_groups(net.decay)
    optimizer = torch.optim.SGD(groups, net.learning_rate, momentum=net.momentum, fused=True)
    for group in groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    set_rate(optimizer, net.learning_rate)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: `rate` times the group's `rate_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]
