"""Pictures as tensors (n, channels, h, w) of 0 to 1: sampled at other places, mirrored, recoloured.

Places are in pixels, as darknet: image.c counts them; each function works on n pictures at once.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plinius.darknet.augmentation.draws import Floats


def sampled(x: Tensor, columns: Tensor, rows: Tensor, *, clamped: bool = False) -> Tensor:
    """The values of x at places (n, h', w') between its pixels, bilinear.

    Beyond its edges x is 0 (image.c, bilinear_interpolate and get_pixel_extend), or with `clamped`
    as at the nearest edge (crop_image).
    """
    height, width = x.shape[2:]
    # In these units pixel i of n lies at (2 i + 1) / n - 1.
    places = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    padding = "border" if clamped else "zeros"
    return functional.grid_sample(x, places, "bilinear", padding, align_corners=False)


def rotated_crops(
    x: Tensor,
    size: tuple[int, int],
    angle: Floats,
    scale: Floats,
    aspect: Floats,
    shift: tuple[Floats, Floats],
) -> Tensor:
    """Crops of `size` (width, height), turned by `angle` (radians) about the middle.

    Each pixel of a crop is 1 / scale pixels of x; columns are also stretched by `aspect`. `shift`
    (x, y) is in pixels of the crop (image.c, rotate_crop_image).
    """
    width, height = size
    across = (torch.arange(width) - width / 2)[None, None, :] + _each(shift[0])
    down = (torch.arange(height) - height / 2)[None, :, None] + _each(shift[1])
    across, down = across / _each(scale) * _each(aspect), down / _each(scale)
    cos, sin = _each(np.cos(angle)), _each(np.sin(angle))
    columns = cos * across - sin * down + x.shape[3] / 2
    rows = sin * across + cos * down + x.shape[2] / 2
    return sampled(x, columns, rows)


def centre_crops(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest square in the middle, resized to `size` (image.c, center_crop_image)."""
    high, wide = x.shape[2:]
    side = min(high, wide)
    top, left = (high - side) // 2, (wide - side) // 2
    return resized(x[:, :, top : top + side, left : left + side], size)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x at another (width, height), corner pixels on corner pixels (image.c, resize_image)."""
    if size == (x.shape[3], x.shape[2]):
        return x
    return functional.interpolate(x, size[::-1], mode="bilinear", align_corners=True)


def placed(
    x: Tensor,
    size: tuple[int, int],
    sides: tuple[Floats, Floats],
    corner: tuple[Floats, Floats],
) -> Tensor:
    """x on grey of `size` (width, height), with these sides, its first pixel at `corner` (x, y).

    All are in pixels, of which whole ones count (image.c, fill_image and place_image).
    """
    places, inside = [], torch.ones(())
    for axis, (side, begin) in enumerate(zip(sides, corner, strict=True)):
        length = np.maximum(np.trunc(side), 1)
        steps = torch.arange(size[axis]).view((1, 1, -1) if axis == 0 else (1, -1, 1))
        steps = steps - _each(np.trunc(begin))
        inside = inside * ((steps >= 0) & (steps < _each(length)))
        places.append(steps / _each(length) * x.shape[3 - axis])
    shape = (len(x), size[1], size[0])
    found = sampled(x, places[0].expand(shape), places[1].expand(shape))
    return torch.where(inside.bool()[:, None], found, 0.5)


def cut(
    x: Tensor, size: tuple[int, int], corner: tuple[Floats, Floats], sides: tuple[Floats, Floats]
) -> Tensor:
    """Rectangles of x, also beyond its edges, resized to `size` (image.c, crop_image)."""
    axes = []
    for n, begin, side in zip(size, corner, sides, strict=True):
        step = torch.arange(n, dtype=torch.float32) / max(n - 1, 1)
        axes.append(step * (_each(side)[:, 0] - 1) + _each(begin)[:, 0])
    shape = (len(x), size[1], size[0])
    columns, rows = axes[0][:, None, :].expand(shape), axes[1][:, :, None].expand(shape)
    return sampled(x, columns, rows, clamped=True)


def mirrored(x: Tensor, which: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Tensor:
    """x, of which those pictures are mirrored left to right (image.c, flip_image)."""
    return torch.where(torch.from_numpy(which).view(-1, 1, 1, 1), x.flip(3), x)


def recoloured(x: Tensor, hue: Floats, saturation: Floats, exposure: Floats) -> Tensor:
    """x (3 channels, or 1 of grey) with `hue` added, and the others as factors, limited to 0..1.

    (image.c, distort_image: in hue, saturation, value.) The formula leaves grey grey: of a single
    channel only the exposure changes.
    """
    if x.shape[1] == 1:
        return (x * _each(exposure)[:, None]).clamp(0, 1)
    largest, which = x.max(1)
    spread = largest - x.min(1).values
    red, green, blue = x.unbind(1)
    safe = torch.where(spread == 0, 1, spread)
    corner = torch.where(
        which == 0,
        (green - blue) / safe,
        torch.where(which == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turn = torch.where(spread == 0, 0, corner) / 6 % 1
    turn = (turn + _each(hue)) % 1
    share = spread / torch.where(largest == 0, 1, largest) * _each(saturation)
    value = largest * _each(exposure)
    # hsv_to_rgb without its six cases: each channel is the value, less what its corner is away.
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + turn * 6) % 6
        channels.append(value - value * share * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1).clamp(0, 1)


def _each(values: Floats) -> Tensor:
    """One number for each picture, as (n, 1, 1)."""
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1)
