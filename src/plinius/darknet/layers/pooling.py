"""Layers that gather pixels: [maxpool], [avgpool], [local_avgpool], [upsample], [reorg]."""

import math

from torch import Tensor
from torch.nn import functional

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Layer, Shape, image_shape


class _Pool(Layer):
    """A window that slides over an image.

    `padding` (default size - 1) is the sum of both sides; padding // 2 goes to the left and the
    top. Output side: (side + padding - size) // stride + 1.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        channels, height, width = image_shape(section, shape)
        stride = section.integer("stride")
        size = section.integer("size") if section.options["size"] else stride
        given = section.options["padding"]
        padding = size - 1 if given is None else section.integer("padding")
        before = padding // 2
        strides = (
            section.integer("stride_y") or stride,
            section.integer("stride_x") or stride,
        )
        outs, afters = [], []
        for side, step in zip((height, width), strides, strict=True):
            out = (side + padding - size) // step + 1
            last = (out - 1) * step - before
            if out < 1 or before >= size or last >= side:
                raise section.error("a window lies outside the image", "Lower size or padding")
            outs.append(out)
            afters.append(max(0, last + size - side))
        super().__init__(section, shape, (channels, *outs))
        self.size, self.stride = size, strides
        self.pads = (before, afters[1], before, afters[0])


class Maxpool(_Pool):
    """[maxpool] (darknet: maxpool_layer.c)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, c, h', w')."""
        x = x.reshape(-1, *self.in_shape)
        if any(self.pads):
            x = functional.pad(x, self.pads, value=-math.inf)
        return functional.max_pool2d(x, self.size, self.stride)


class MaxpoolDepth(Layer):
    """[maxpool] maxpool_depth=1 of the fork: the maximum of channels k, k + n, k + 2 n, ...

    n is `out_channels`, and that many channels come out (fork: maxpool_layer.c).
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        channels, height, width = image_shape(section, shape)
        out = section.integer("out_channels")
        if out > channels:
            todo = f"Give at most {channels}"
            raise section.error(f"out_channels={out} is too many", todo, "out_channels")
        super().__init__(section, shape, (out, height, width))
        self.missing = -channels % out

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, out_channels, h, w)."""
        x = x.reshape(-1, *self.in_shape)
        x = functional.pad(x, (0, 0, 0, 0, 0, self.missing), value=-math.inf)
        return x.reshape(x.shape[0], -1, *self.out_shape).max(1).values


class LocalAvgpool(_Pool):
    """[local_avgpool] of the fork: the mean of the pixels of the window that lie in the image.

    (fork: maxpool_layer.c, forward_local_avgpool_layer)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, c, h', w')."""
        x = x.reshape(-1, *self.in_shape)
        inside = functional.pad(x.new_ones(1, 1, *self.in_shape[1:]), self.pads)
        sums = functional.avg_pool2d(functional.pad(x, self.pads), self.size, self.stride)
        return sums / functional.avg_pool2d(inside, self.size, self.stride)


class Avgpool(Layer):
    """[avgpool]: the mean of each channel (darknet: avgpool_layer.c)."""

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, (image_shape(section, shape)[0], 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, c)."""
        return x.reshape(-1, *self.in_shape).mean((2, 3))


class Upsample(Layer):
    """[upsample]: each pixel becomes stride x stride pixels, times `scale` (darknet: blas.c,
    upsample_cpu). A negative stride is the reverse: the sum of stride x stride pixels, times scale.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        channels, height, width = image_shape(section, shape)
        self_stride = section.integer("stride")
        factor = abs(self_stride)
        if not factor:
            raise section.error("stride=0", "Give a stride other than 0", "stride")
        sides = (height * factor, width * factor)
        if self_stride < 0:
            sides = (height // factor, width // factor)
            if height % factor or width % factor:
                todo = f"Make the stride divide the image of {height} x {width}"
                raise section.error("the stride does not divide evenly", todo, "stride")
        super().__init__(section, shape, (channels, *sides))
        self.factor, self.reverse = factor, self_stride < 0
        self.scale = section.real("scale")

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, c, h', w')."""
        x = x.reshape(-1, *self.in_shape)
        if self.reverse:
            return functional.avg_pool2d(x, self.factor) * (self.scale * self.factor**2)
        y = functional.interpolate(x, scale_factor=self.factor, mode="nearest")
        return y if self.scale == 1 else y * self.scale


class Reorg(Layer):
    """[reorg]: the same values in another shape (darknet: reorg_layer.c; blas.c, reorg_cpu).

    With stride s, (c, h, w) becomes (c s s, h / s, w / s), in Darknet's own order, which treats the
    input as (c / (s s), h s, w s); reverse=1 gives (c / (s s), h s, w s). flatten=1 goes from
    channel, row, column to row, column, channel (reverse=1: back). extra=n appends n zeros to each
    record, which then is no image.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        channels, height, width = image_shape(section, shape)
        stride, extra = section.integer("stride"), section.integer("extra")
        self_reverse, flatten = bool(section.integer("reverse")), bool(section.integer("flatten"))
        if flatten and extra:
            raise section.error("flatten and extra exclude each other", "Keep one", "extra")
        square = stride * stride
        out: Shape = (channels * square, height // stride, width // stride)
        if self_reverse:
            out = (channels // square, height * stride, width * stride)
        if extra:
            out = (math.prod(shape) + extra,)
        elif math.prod(out) != math.prod(shape) or (not flatten and channels % square):
            todo = f"Make the channels a multiple of {square}, and the sides one of {stride}"
            raise section.error("the stride does not divide evenly", todo, "stride")
        super().__init__(section, shape, out)
        self.stride, self.extra = stride, extra
        self.flat, self.reverse = flatten, self_reverse

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, *out_shape)."""
        if self.extra:
            return functional.pad(x.flatten(1), (0, self.extra))
        channels, height, width = self.in_shape
        x = x.reshape(-1, *self.in_shape)
        s, n = self.stride, x.shape[0]
        if self.flat:
            order = (height * width, channels) if self.reverse else (channels, height * width)
            y = x.reshape(n, *order).transpose(1, 2)
        elif self.reverse:
            y = x.reshape(n, s, s, -1, height, width).permute(0, 3, 4, 1, 5, 2)
        else:
            y = x.reshape(n, -1, height, s, width, s).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, *self.out_shape)
