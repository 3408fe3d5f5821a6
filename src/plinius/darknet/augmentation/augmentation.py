"""What a cfg asks of training pictures, and the pictures and boxes of an iteration after it."""

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from plinius.darknet.augmentation import pictures
from plinius.darknet.augmentation.draws import PICTURES, SCALE, Draws, Floats
from plinius.darknet.augmentation.moved_boxes import Labels, moved
from plinius.darknet.cfg import Cfg, Net, Section
from plinius.darknet.cfg_keys import HEADS
from plinius.errors import CfgError, SourceError

_JITTER = 0.2  # if the head does not say (darknet: parser.c, parse_yolo and others)
_RESIZE_EVERY = 10
_ROUNDING = 1e-6  # a ratio times the width is whole if it is nearly so
_RANDOM_SCALE = 1.4
_CROP_KEYS = ("angle", "aspect", "min_crop", "max_crop", "min_ratio", "max_ratio", "center")


@dataclass(frozen=True)
class Augmentation:
    """Darknet's changes of training pictures.

    `kind` is "crop" for a network of classes (darknet: data.c, load_image_augment_paths), "place"
    for [yolo] and [region] (load_data_detection), "cut" for [detection] (load_data_region). `size`
    is (width, height) of the network, `crop` the shortest and longest shorter side that a picture
    is scaled to before a crop of `size` is taken. `jitter` is a share of the picture's sides,
    `angle` in degrees; `aspect`, `saturation`, `exposure` and `scales` are the largest factors, 1
    for none. All numbers depend on seed and iteration alone, so a resume needs no state of it.
    """

    kind: Literal["crop", "place", "cut"]
    size: tuple[int, int]
    crop: tuple[int, int]
    centred: bool
    flips: bool
    angle: float
    aspect: float
    hue: float
    saturation: float
    exposure: float
    jitter: float
    scales: float
    step: int

    @classmethod
    def of(cls, cfg: Cfg) -> "Augmentation | None":
        """That of a cfg, None if no key asks for any. Raises CfgError if it is impossible.

        One key that asks for something brings all of it, with Darknet's defaults for the others.
        """
        head = _head(cfg)
        asking = _asking(cfg.net, head)
        if not asking:
            return None
        net = cfg.net
        _require_pictures(cfg, asking[0])
        if head is None:
            kind: Literal["crop", "place", "cut"] = "crop"
        else:
            kind = "cut" if head.kind == "detection" else "place"
        jitter = head.options["jitter"] if head else 0.0
        random = head.real("random") if kind == "place" and head else 0.0
        return cls(
            kind=kind,
            size=(net.width, net.height),
            crop=_crop(net),
            centred=bool(net.center),
            flips=net.flip != 0,
            angle=net.angle,
            aspect=net.aspect or 1,
            hue=net.hue,
            saturation=net.saturation or 1,
            exposure=net.exposure or 1,
            jitter=_JITTER if jitter is None else float(cast(float, jitter)),
            scales=_RANDOM_SCALE if random == 1 else random or 1.0,
            step=net.resize_step,
        )

    @property
    def largest(self) -> tuple[int, int]:
        """The largest (width, height) that a picture of a run may have."""
        return self.size if self.scales == 1 else self._scaled(max(self.scales, 1 / self.scales))

    def size_at(self, seed: int, iteration: int) -> tuple[int, int]:
        """The (width, height) of the pictures of an iteration (counted from 0).

        With random=1 in [yolo] or [region] it changes every ten iterations (fork: detector.c,
        train_detector); the original knows 320 to 608 pixels only.
        """
        if self.scales == 1:
            return self.size
        draws = Draws(seed, iteration // _RESIZE_EVERY, SCALE)
        return self._scaled(float(draws.scale(self.scales)[0]))

    def _scaled(self, factor: float) -> tuple[int, int]:
        # roundl of C: halves go away from 0.
        width, height = (
            max(math.floor(factor * side / self.step + 1.5) * self.step, self.step)
            for side in self.size
        )
        if factor < 1 and (width > self.size[0] or height > self.size[1]):
            return self.size
        return width, height

    def apply(
        self, x: Tensor, boxes: Labels | None, seed: int, iteration: int
    ) -> tuple[Tensor, Labels | None]:
        """The pictures (n, c, h, w) of an iteration, and their boxes (n, boxes, 5), changed.

        The pictures become as large as `size_at` says. Raises SourceError for colours beyond 0..1.
        """
        draws = Draws(seed, iteration, PICTURES, len(x))
        if self.kind == "crop" or boxes is None:
            return self._coloured(draws, self._cropped(draws, x)), boxes
        size = self.size_at(seed, iteration)
        x, scale, shift = (self._cut if self.kind == "cut" else self._placed)(draws, x, size)
        flips = self._flips(draws)
        x = pictures.mirrored(self._recoloured(draws, x), flips)
        return x, moved(boxes, scale, shift, flips, draws.fractions(boxes.shape[1]))

    def _coloured(self, draws: Draws, x: Tensor) -> Tensor:
        flips = self._flips(draws)
        return self._recoloured(draws, pictures.mirrored(x, flips))

    def _cropped(self, draws: Draws, x: Tensor) -> Tensor:
        """(image.c, random_augment_args; there the second shift also uses the width)."""
        if self.centred:
            return pictures.centre_crops(x, self.size)
        high, wide = x.shape[2:]
        aspect = draws.scale(self.aspect)
        shorter = np.maximum(np.trunc(np.minimum(high, wide * aspect)), 1)
        scale = draws.integer(*self.crop) / shorter
        angle = np.radians(draws.uniform(-self.angle, self.angle))
        spare = ((wide * scale / aspect - self.size[0]) / 2, (high * scale - self.size[1]) / 2)
        shift = (draws.uniform(-spare[0], spare[0]), draws.uniform(-spare[1], spare[1]))
        return pictures.rotated_crops(x, self.size, angle, scale, aspect, shift)

    def _placed(
        self, draws: Draws, x: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[Floats, Floats], tuple[Floats, Floats]]:
        """(pictures, what scales and shifts the edges of boxes): load_data_detection."""
        high, wide = x.shape[2:]
        across = wide + draws.uniform(-self.jitter * wide, self.jitter * wide)
        ratio = across / (high + draws.uniform(-self.jitter * high, self.jitter * high))
        tall = np.where(ratio < 1, size[1], size[0] / ratio)
        broad = np.where(ratio < 1, size[1] * ratio, size[0])
        left, top = draws.uniform(0, size[0] - broad), draws.uniform(0, size[1] - tall)
        x = pictures.placed(x, size, (broad, tall), (left, top))
        return x, (broad / size[0], tall / size[1]), (-left / size[0], -top / size[1])

    def _cut(
        self, draws: Draws, x: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[Floats, Floats], tuple[Floats, Floats]]:
        """The same for [detection]: load_data_region."""
        corner, sides = [], []
        for side in (x.shape[3], x.shape[2]):
            most = math.trunc(side * self.jitter)
            before, after = (np.trunc(draws.uniform(-most, most)) for _ in range(2))
            corner.append(before)
            sides.append(np.maximum(side - before - after, 1))
        places, spans = (corner[0], corner[1]), (sides[0], sides[1])
        scale = (x.shape[3] / sides[0], x.shape[2] / sides[1])
        shift = (corner[0] / sides[0], corner[1] / sides[1])
        return pictures.cut(x, size, places, spans), scale, shift

    def _flips(self, draws: Draws) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        coins = draws.coins()
        return coins if self.flips else np.zeros_like(coins)

    def _recoloured(self, draws: Draws, x: Tensor) -> Tensor:
        """(image.c, random_distort_image.)"""
        if (self.hue, self.saturation, self.exposure) == (0, 1, 1):
            return x
        if not 0 <= float(x.min()) <= float(x.max()) <= 1:
            raise SourceError(
                "hue, saturation and exposure are for colours from 0 to 1, and the samples have "
                "others",
                "Seal the pictures as unsigned integers, or remove these keys from [net]",
            )
        hue = draws.uniform(-self.hue, self.hue)
        saturation, exposure = draws.scale(self.saturation), draws.scale(self.exposure)
        return pictures.recoloured(x, hue, saturation, exposure)


def crops(cfg: Cfg) -> bool:
    """Whether training takes crops of pictures, which may then have another size."""
    return _head(cfg) is None and bool(_asking(cfg.net, None))


def without_effect(cfg: Cfg) -> list[str]:
    """Warnings: keys of [net] for crops, in a network that finds boxes (as in the original)."""
    head = _head(cfg)
    if head is None:
        return []
    named = [key for key in _CROP_KEYS if getattr(cfg.net, key) not in (None, _neutral(key))]
    what = f"{', '.join(named)} of [net]: no effect on a network that finds boxes"
    return [head.locate(what)] if named else []


def _head(cfg: Cfg) -> Section | None:
    heads = [section for section in cfg.sections if section.kind in HEADS]
    return heads[-1] if heads else None


def _neutral(key: str) -> float:
    return 1 if key in ("aspect", "saturation", "exposure") else 0


def _asking(net: Net, head: Section | None) -> list[str]:
    """The keys that ask for augmentation."""
    keys: tuple[str, ...] = ("hue", "saturation", "exposure", "flip")
    keys = keys if head else (*keys, *_CROP_KEYS)
    # A factor of 0 is as 1 (darknet: data.c, load_thread).
    found = [key for key in keys if getattr(net, key) not in (None, 0, _neutral(key))]
    if head and head.options["jitter"]:
        found.append("jitter")
    if head and head.kind != "detection" and head.options["random"]:
        found.append("random")
    return found


def _crop(net: Net) -> tuple[int, int]:
    """(darknet: parser.c, parse_net_options; examples/classifier.c, train_classifier)."""
    low = net.width if net.min_crop is None else net.min_crop
    high = 2 * net.width if net.max_crop is None else net.max_crop
    if net.min_ratio is not None:
        low = math.floor(net.min_ratio * net.width + _ROUNDING)
    if net.max_ratio is not None:
        high = math.floor(net.max_ratio * net.width + _ROUNDING)
    return max(low, 1), max(high, 1)


def _require_pictures(cfg: Cfg, key: str) -> None:
    net = cfg.net
    what = ""
    plain = (net.hue, net.saturation or 1, net.exposure or 1) == (0, 1, 1)
    if not (net.height and net.width and net.channels):
        what = "the input has no height, width and channels"
    elif net.time_steps > 1:
        what = "the network works on sequences"
    elif any(section.kind == "iseg" for section in cfg.sections):
        what = "[iseg] compares with masks, which would not follow"
    elif net.channels not in (1, 3) and not plain:
        what = f"colours need 1 or 3 channels, not {net.channels}"
    if what:
        raise CfgError(
            f"{cfg.name} asks for changed training pictures ({key}), but {what}",
            f"Remove {key} and the other keys for pictures from the cfg",
        )


def flat(labels: Labels, truths: int) -> Tensor:
    """Labels (n, boxes, 5) as truths (n, truths) of [yolo] and [region], 0 after the last."""
    out = np.zeros((len(labels), truths), np.float32)
    values = labels.reshape(len(labels), -1)
    out[:, : values.shape[1]] = values
    return torch.from_numpy(out)
