"""From the sections of a cfg to its layers, without any memory for their arrays."""

import math
from collections.abc import Sequence

import torch

from plinius.darknet.cfg import Cfg, Net, Section
from plinius.darknet.layers.base import Layer, Shape
from plinius.darknet.layers.combining import Route, Sam, ScaleChannels, Shortcut
from plinius.darknet.layers.connected import Connected
from plinius.darknet.layers.convolutional import Convolutional, Deconvolutional, Local
from plinius.darknet.layers.elementwise import Activation, Crop, Dropout
from plinius.darknet.layers.normalisation import Batchnorm, L2norm, Normalization
from plinius.darknet.layers.pooling import (
    Avgpool,
    LocalAvgpool,
    Maxpool,
    MaxpoolDepth,
    Reorg,
    Upsample,
)
from plinius.darknet.layers.recurrent import Crnn, Gru, Lstm, Rnn
from plinius.darknet.losses.base import LossLayer
from plinius.darknet.losses.classes import Logistic, Softmax
from plinius.darknet.losses.cost import COSTS, Cost
from plinius.darknet.losses.detection import Detection
from plinius.darknet.losses.iseg import Iseg
from plinius.darknet.losses.region import Region
from plinius.darknet.losses.yolo import Yolo
from plinius.darknet.memory import machine_memory, shown
from plinius.errors import CfgError

MAX_PARAMETERS = 2**31
"""The largest number of parameters of a network: 8 GiB as float32."""

MAX_VALUES_PER_PASS = 2**31
"""The largest number of values that a layer reads or writes in one pass."""


def input_shape(net: Net) -> Shape:
    """The shape of a row."""
    if net.height and net.width and net.channels:
        return (net.channels, net.height, net.width)
    return (net.inputs,)


def build_layers(cfg: Cfg, norm: str, generator: torch.Generator) -> list[Layer]:
    """The layers of `cfg`, arrays on the meta device. Raises CfgError."""
    shapes: list[Shape] = []
    layers: list[Layer] = []
    for section in cfg.sections:
        before = shapes[-1] if shapes else input_shape(cfg.net)
        layer = _layer(cfg, section, before, shapes, norm, generator)
        if section.integer("numload") and not isinstance(layer, Convolutional):
            raise section.error("numload is for [convolutional]", "Remove the line", "numload")
        layers.append(layer)
        shapes.append(layer.out_shape)
    _check_pass(layers, cfg.net.sub_batch)
    count = sum(array.numel() for layer in layers for array in layer.arrays().values())
    if count > MAX_PARAMETERS:
        what = f"{cfg.name} describes {count} parameters"
        raise CfgError(what, f"At most {MAX_PARAMETERS} are possible; lower filters or output")
    return layers


def require_memory(name: str, needed: int, doing: str) -> None:
    """Raise CfgError if the machine has less than `needed` bytes of memory."""
    there = machine_memory()
    if needed > there:
        raise CfgError(
            f"{doing} {name} takes at least {shown(needed)} of memory; there are {shown(there)}",
            "Lower batch, filters or output, or use a machine with more",
        )


def _layer(
    cfg: Cfg,
    section: Section,
    shape: Shape,
    shapes: list[Shape],
    norm: str,
    generator: torch.Generator,
) -> Layer:
    net = cfg.net
    match section.kind:
        case "convolutional":
            return Convolutional(section, shape, norm)
        case "deconvolutional":
            return Deconvolutional(section, shape, norm)
        case "local":
            return Local(section, shape)
        case "connected":
            return Connected(section, shape, norm)
        case "maxpool":
            deep = section.integer("maxpool_depth")
            return MaxpoolDepth(section, shape) if deep else Maxpool(section, shape)
        case "local_avgpool":
            return LocalAvgpool(section, shape)
        case "avgpool":
            return Avgpool(section, shape)
        case "upsample":
            return Upsample(section, shape)
        case "reorg":
            return Reorg(section, shape)
        case "route":
            return Route(section, shapes)
        case "shortcut":
            return Shortcut(section, shape, shapes)
        case "sam":
            return Sam(section, shape, shapes)
        case "scale_channels":
            return ScaleChannels(section, shape, shapes)
        case "activation":
            return Activation(section, shape)
        case "dropout":
            return Dropout(section, shape, generator)
        case "crop":
            return Crop(section, shape, generator)
        case "batchnorm":
            return Batchnorm(section, shape, norm)
        case "normalization":
            return Normalization(section, shape)
        case "l2norm":
            return L2norm(section, shape)
        case "rnn":
            return Rnn(section, shape, norm, net.time_steps, net.sub_batch)
        case "gru":
            return Gru(section, shape, norm, net.time_steps, net.sub_batch)
        case "lstm":
            return Lstm(section, shape, norm, net.time_steps, net.sub_batch)
        case "crnn":
            return Crnn(section, shape, norm, net.time_steps, net.sub_batch)
        case _:
            return _loss(cfg, section, shape, generator)


def _loss(cfg: Cfg, section: Section, shape: Shape, generator: torch.Generator) -> Layer:
    match section.kind:
        case "softmax":
            return Softmax(section, shape, cfg.tree(section))
        case "logistic":
            return Logistic(section, shape)
        case "cost":
            return Cost(section, shape)
        case "yolo":
            return Yolo(section, shape, (cfg.net.width, cfg.net.height), cfg.class_map(section))
        case "region":
            return Region(section, shape, cfg.tree(section), cfg.class_map(section))
        case "detection":
            return Detection(section, shape, generator)
        case "iseg":
            return Iseg(section, shape)
        case _:
            raise AssertionError(f"nobody builds [{section.kind}]")


def unknown_costs(sections: Sequence[Section]) -> list[str]:
    """Warnings: an unknown cost means sse (darknet: cost_layer.c, get_cost_type)."""
    return [
        section.locate(f"unknown type {section.text('type')[:40]!r} means sse", "type")
        for section in sections
        if section.kind == "cost" and section.text("type") not in COSTS
    ]


def truths_of(layers: Sequence[Layer]) -> int:
    """Truth values per row that a network takes.

    Those that its last layer compares with, if it says how many, else the outputs of the last layer
    other than [cost] (darknet: parser.c, parse_network_cfg). Raises CfgError if all are [cost].
    """
    plain = [layer for layer in layers if not isinstance(layer, Cost)]
    if not plain:
        raise layers[0].section.error("nothing to compare", "Put a layer before it")
    last = layers[-1]
    if isinstance(last, LossLayer) and not isinstance(last, Cost) and last.truths is not None:
        return last.truths
    return math.prod(plain[-1].out_shape)


def require_truths(layers: Sequence[Layer], truths: int) -> None:
    """Raise CfgError if a layer compares with another number of truth values than there are."""
    for layer in layers:
        own = layer.truths if isinstance(layer, LossLayer) else None
        if own is not None and own != truths:
            raise layer.section.error(
                f"compares {own} values with a truth of {truths}",
                "Make them equal; a [softmax] with noloss=1 compares nothing",
            )
        if layer.gives_truth:
            truths = math.prod(layer.out_shape)


def _check_pass(layers: Sequence[Layer], rows: int) -> None:
    for layer in layers:
        if rows * max(math.prod(layer.in_shape), math.prod(layer.out_shape)) > MAX_VALUES_PER_PASS:
            todo = f"Lower batch (at most {MAX_VALUES_PER_PASS} values in a pass)"
            raise layer.section.error("too many values in one pass", todo)
