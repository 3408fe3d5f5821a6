"""Darknet's update rule, done by PyTorch's SGD."""

import torch

from plinius.darknet.cfg import Net
from plinius.darknet.network import Network


def make_optimizer(network: Network, net: Net) -> torch.optim.SGD:
    """The optimizer of [net]. Gradients must be those of the objective divided by `batch`.

    For an update with B records and the summed descent direction g, Darknet computes
    v += g; v -= decay * B * w (weights only); w += rate / B * v; v *= momentum
    (darknet: convolutional_layer.c, update_convolutional_layer). With b = -v / B before the last
    assignment, this is b = momentum * b - g / B + decay * w; w -= rate * b, which is PyTorch's SGD.
    Both multiply b by the current rate, so they also agree if the rate changes: call `set_rate`
    before each step. The momentum buffers exist from the start, as zeros, which does not change
    the first step.
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
