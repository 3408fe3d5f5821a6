"""A network as a table of its layers, without any memory for its arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plinius.darknet.augmentation.augmentation import without_effect
from plinius.darknet.build import build_layers, input_shape, truths_of, unknown_costs
from plinius.darknet.cfg import Cfg
from plinius.darknet.layers.base import Layer, Shape
from plinius.darknet.memory import parameter_bytes, training_bytes


@dataclass(frozen=True)
class LayerRow:
    """One layer: `size` is that of its window with the stride, such as "3x3/2".

    `sources` are the numbers of the layers it reads, -1 the input. `bflops` are 10**9
    floating-point operations for one record, a multiplication and an addition as two, as Darknet
    prints them. `parameters` are the floats of the layer in a .weights file.
    """

    index: int
    kind: str
    filters: int | None
    size: str
    input: Shape
    output: Shape
    sources: tuple[int, ...]
    parameters: int
    bflops: float


@dataclass(frozen=True)
class Description:
    """A network: its layers, and sums over them.

    `training_bytes` is the least memory that a pass of training takes, `truths` the values of truth
    per row.
    """

    name: str
    input: Shape
    rows: tuple[LayerRow, ...]
    parameters: int
    bflops: float
    weights_file_bytes: int
    training_bytes: int
    truths: int
    warnings: tuple[str, ...]


def describe(cfg: Cfg) -> Description:
    """The table of the network of `cfg`. Raises CfgError."""
    layers = build_layers(cfg, "darknet", torch.Generator())
    rows = tuple(_row(layer) for layer in layers)
    stored = [layer for layer in layers if not layer.section.integer("dontsave")]
    return Description(
        name=cfg.name,
        input=input_shape(cfg.net),
        rows=rows,
        parameters=sum(row.parameters for row in rows),
        bflops=sum(row.bflops for row in rows),
        weights_file_bytes=20 + parameter_bytes(stored),
        training_bytes=training_bytes(layers, cfg.net.sub_batch),
        truths=truths_of(layers),
        warnings=(*cfg.warnings, *unknown_costs(cfg.sections), *without_effect(cfg)),
    )


def _row(layer: Layer) -> LayerRow:
    options = layer.section.options
    filters = options.get("filters") or options.get("output") or options.get("output_filters")
    return LayerRow(
        index=layer.section.index,
        kind=layer.section.kind,
        filters=filters if isinstance(filters, int) else None,
        size=_size(layer),
        input=layer.in_shape,
        output=layer.out_shape,
        sources=layer.sources,
        parameters=sum(array.numel() for array in layer.arrays().values()),
        bflops=layer.operations() / 1e9,
    )


def _size(layer: Layer) -> str:
    options = layer.section.options
    stride, size = options.get("stride"), options.get("size") or options.get("stride")
    if size is None or layer.section.kind == "normalization":
        return ""
    return f"{size}x{size}/{stride}" if "size" in options else f"/{stride}"


_COLUMNS = ("layer", "type", "filters", "size", "input", "output", "parameters", "BFLOPs")


def table(described: Description, columns: int | None = None) -> str:
    """The table as text: one line a layer, with Darknet's columns, and the sums below.

    Where it is wider than `columns` characters, it does without BFLOPs, inputs, sizes and filters,
    in this order.
    """
    lines: list[Sequence[str]] = [_COLUMNS]
    for row in described.rows:
        before = row.index - 1
        named = row.sources != (before,)
        others = ",".join(str(at) for at in row.sources if at != before or row.kind == "route")
        lines.append(
            (
                str(row.index),
                f"{row.kind} {others}".strip() if named else row.kind,
                "" if row.filters is None else str(row.filters),
                row.size,
                dimensions(row.input),
                dimensions(row.output),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.bflops:.3f}" if row.bflops else "",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    shown = [*range(len(_COLUMNS))]
    for spare in ("BFLOPs", "input", "size", "filters"):
        if columns and sum(widths[i] + 2 for i in shown) - 2 > columns:
            shown.remove(_COLUMNS.index(spare))
    left = {1, 3}
    text = [
        "  ".join(
            line[i].ljust(widths[i]) if i in left else line[i].rjust(widths[i]) for i in shown
        ).rstrip()
        for line in lines
    ]
    text.append(f"{described.parameters:,} parameters, {described.bflops:.3f} BFLOPs")
    return "\n".join(text)


def dimensions(shape: Shape) -> str:
    """A shape as Darknet writes it: width x height x channels, or the number of values."""
    return " x ".join(map(str, reversed(shape))) if len(shape) == 3 else str(math.prod(shape))
