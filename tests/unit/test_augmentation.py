"""Darknet's changes of training pictures, against its formulas pixel by pixel, and of boxes."""

import math

import numpy as np
import pytest
import torch

from plinius.darknet.augmentation import pictures
from plinius.darknet.augmentation.augmentation import Augmentation, without_effect
from plinius.darknet.augmentation.moved_boxes import in_cells
from plinius.darknet.cfg import parse_cfg
from plinius.darknet.network import Network
from plinius.errors import CfgError, SourceError

NET = "[net]\nheight=24\nwidth=24\nchannels=3\nbatch=2\n"
END = "[convolutional]\nfilters=2\n[avgpool]\n[softmax]\n"
YOLO = "[yolo]\nclasses=2\nnum=1\nanchors=8,8\nmax=4\n"
CHANNELS = "[convolutional]\nfilters=7\nactivation=linear\n"
DETECTION = "[connected]\noutput=28\n[detection]\nclasses=2\ncoords=4\nside=2\nnum=1\n"
KEYS = "hue=.1\nsaturation=1.5\nexposure=1.5\n"


def augmentation(text: str) -> Augmentation:
    """That of a cfg that has one."""
    found = Augmentation.of(parse_cfg(text, "a.cfg"))
    assert found
    return found


def bilinear(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """darknet: image.c, bilinear_interpolate, with get_pixel_extend."""
    _, height, width = image.shape
    left, top = math.floor(x), math.floor(y)
    found = torch.zeros(len(image))
    for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                found = found + down * across * image[:, row, column]
    return found


def test_a_rotated_crop_is_that_of_the_formula() -> None:
    """Every pixel of crops with angle, scale, aspect and shift (image.c, rotate_crop_image)."""
    x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    angle, scale = np.array([0.3, -1.0]), np.array([0.7, 1.9])
    aspect, dx, dy = np.array([0.8, 1.2]), np.array([1.5, -2.0]), np.array([0.4, 0.9])
    found = pictures.rotated_crops(x, (5, 4), angle, scale, aspect, (dx, dy))
    for i in range(2):
        cos, sin = math.cos(angle[i]), math.sin(angle[i])
        for row in range(4):
            for column in range(5):
                across = ((column - 2.5) / scale[i] + dx[i] / scale[i]) * aspect[i]
                down = (row - 2.0) / scale[i] + dy[i] / scale[i]
                place = (cos * across - sin * down + 3.5, sin * across + cos * down + 3.0)
                wanted = bilinear(x[i], *place)
                torch.testing.assert_close(found[i, :, row, column], wanted, atol=2e-5, rtol=0)


def test_a_placed_picture_is_that_of_the_formula() -> None:
    """Grey outside, and every pixel inside (image.c, place_image)."""
    x = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(2))
    sides, corner = (np.array([5.7]), np.array([8.2])), (np.array([2.9]), np.array([0.6]))
    found = pictures.placed(x, (9, 9), sides, corner)[0]
    wanted = torch.full((3, 9, 9), 0.5)
    for row in range(8):
        for column in range(5):
            wanted[:, row, column + 2] = bilinear(x[0], column / 5 * 7, row / 8 * 6)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_colours_change_by_hue_saturation_and_value() -> None:
    """As by the six cases of image.c, distort_image; grey stays grey."""
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    x[..., 0, 0], x[..., 0, 1] = 0.4, 0.0
    found = pictures.recoloured(x, np.array([0.2]), np.array([1.4]), np.array([0.8]))[0]
    for row in range(4):
        for column in range(4):
            red, green, blue = x[0, :, row, column].tolist()
            most, spread = max(red, green, blue), max(red, green, blue) - min(red, green, blue)
            h = 0.0
            if spread:
                if most == red:
                    h = (green - blue) / spread
                else:
                    h = 2 + (blue - red) / spread if most == green else 4 + (red - green) / spread
            h = (h + 6 if h < 0 else h) / 6 + 0.2
            h, s, v = 6 * (h - 1 if h > 1 else h), 1.4 * spread / (most or 1), 0.8 * most
            f = h - math.floor(h)
            p, q, t = v * (1 - s), v * (1 - s * f), v * (1 - s * (1 - f))
            cases = [(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)]
            wanted = torch.tensor(cases[min(math.floor(h), 5)]).clamp(0, 1)
            torch.testing.assert_close(found[:, row, column], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("head", "kind"), [(CHANNELS + YOLO, "place"), (DETECTION, "cut")])
def test_a_box_follows_what_it_encloses(head: str, kind: str) -> None:
    """A bright rectangle and its box, moved, squeezed, cut off and mirrored in 64 pictures."""
    size = 40
    net = NET.replace("=24", f"={size}")
    changed = augmentation(net + head + "jitter=.3\n")
    assert changed.kind == kind
    x = torch.zeros(64, 1, size, size)
    x[:, :, 6:16, 18:34] = 1
    labels = np.zeros((64, 3, 5), np.float32)
    labels[:, 0] = [26 / size, 11 / size, 16 / size, 10 / size, 1]
    y, moved = changed.apply(x, labels, 5, 7)
    assert moved is not None
    flipped = 0
    for picture, boxes in zip(y, moved, strict=True):
        rows, columns = (picture[0] > 0.75).nonzero().T
        middle = [(v.min() + v.max() + 1) / 2 / size for v in (columns, rows)]
        sides = [(v.max() + 1 - v.min()) / size for v in (columns, rows)]
        np.testing.assert_allclose(boxes[0], [*middle, *sides, 1], atol=2 / size)
        assert not boxes[1:].any()
        flipped += middle[0] < 0.45
    assert 10 < flipped < 54


def test_boxes_that_leave_the_picture_are_gone() -> None:
    """Those that end at its edge keep the part that is left."""
    changed = augmentation(NET + DETECTION + "jitter=.5\n")
    labels = np.zeros((200, 2, 5), np.float32)
    labels[:, 0] = [0.05, 0.5, 0.06, 0.2, 1]
    labels[:, 1] = [0.5, 0.5, 0.2, 0.2, 0]
    _, moved = changed.apply(torch.zeros(200, 3, 24, 24), labels, 0, 0)
    assert moved is not None
    counts = (moved[..., 0] != 0).sum(1)
    assert set(counts) == {1, 2}
    kept = moved[moved[..., 0] != 0]
    assert (kept[:, :2] - kept[:, 2:4] / 2 >= -1e-6).all()
    assert (kept[:, :2] + kept[:, 2:4] / 2 <= 1 + 1e-6).all()
    assert (moved[counts == 1][:, 0, 4] == 0).all()


def test_draws_depend_on_seed_and_iteration_alone() -> None:
    """So a resumed run changes its pictures as the uninterrupted one."""
    changed = augmentation(NET + KEYS + END)
    x = torch.rand(4, 3, 24, 24)
    first = changed.apply(x, None, 1, 3)[0]
    assert torch.equal(first, changed.apply(x, None, 1, 3)[0])
    for seed, iteration in ((1, 4), (2, 3)):
        assert not torch.equal(first, changed.apply(x, None, seed, iteration)[0])


def test_without_keys_pictures_stay() -> None:
    """Values that ask for nothing are as none; one key brings Darknet's defaults of the others."""
    nothing = "angle=0\nsaturation=1\nexposure=1\nhue=0\naspect=1\nflip=0\n"
    zero = "saturation=0\nexposure=0\naspect=0\n"
    for text in (
        NET + END,
        NET + nothing + END,
        NET + zero + END,
        NET + CHANNELS + YOLO + "jitter=0\nrandom=0\n",
    ):
        assert Augmentation.of(parse_cfg(text, "a.cfg")) is None
    found = augmentation(NET + "hue=.1\n" + END)
    assert (found.crop, found.flips, found.hue) == ((24, 48), True, 0.1)
    assert augmentation(NET + "min_crop=20\nmax_crop=28\nflip=0\n" + END).crop == (20, 28)
    assert augmentation(NET + "min_ratio=.5\nmax_ratio=2\n" + END).crop == (12, 48)
    assert augmentation(NET + "hue=.1\n" + CHANNELS + YOLO).jitter == 0.2


def test_larger_pictures_are_cropped_to_the_network() -> None:
    """By at most 2 pixels each way for 28 of 32, as in the author's cifar.cfg."""
    net = NET.replace("=24", "=28") + "min_crop=32\nmax_crop=32\n" + END
    x = torch.arange(32.0).expand(50, 3, 32, 32) / 32
    crops = augmentation(net).apply(x, None, 0, 0)[0]
    assert crops.shape == (50, 3, 28, 28)
    left = 32 * torch.minimum(crops[:, 0, 3, 3], crops[:, 0, 3, -4]) - 3
    assert (left >= -0.01).all() and (left <= 4.01).all() and left.max() - left.min() > 2
    assert Network(parse_cfg(net, "a.cfg")).crops


def test_a_network_takes_pictures_of_other_sizes() -> None:
    """random=1: every ten iterations a size; the network is then that of a cfg of this size."""
    text = NET + "resize_step=4\n" + CHANNELS.replace("linear", "leaky\nsize=3\npad=1\nstride=2")
    text += "[maxpool]\nsize=2\nstride=2\n[upsample]\n[route]\nlayers=-1,-3\n"
    text += "[convolutional]\nfilters=7\nactivation=linear\n" + YOLO + "random=1\n"
    changed = augmentation(text)
    sizes = [changed.size_at(0, iteration) for iteration in range(400)]
    assert all(len(set(sizes[at : at + 10])) == 1 for at in range(0, 400, 10))
    assert {(24, 24), changed.largest} < set(sizes) and changed.largest == (36, 36)
    net = Network(parse_cfg(text, "a.cfg"))
    net.require_sizes(changed.largest)
    x, boxes = changed.apply(torch.rand(2, 3, 24, 24), np.zeros((2, 4, 5), np.float32), 0, 0)
    size = sizes[0]
    assert (x.shape, boxes.shape if boxes is not None else 0) == ((2, 3, *size), (2, 4, 5))
    x = torch.rand(2, 3, 36, 36)
    net.take_size(x.shape)
    other = Network(parse_cfg(text.replace("=24", "=36"), "b.cfg"))
    other.load_state_dict(net.state_dict())
    truth = torch.tensor([[0.4, 0.6, 0.3, 0.3, 1] + [0.0] * 15] * 2)
    for one, two in zip(net.loss(x, truth), other.loss(x, truth), strict=True):
        torch.testing.assert_close(one, two)
    fixed = Network(parse_cfg(text.replace("[maxpool]", "[local]\nfilters=1\n[maxpool]"), "c"))
    with pytest.raises(CfgError, match=r"\[local\] has arrays that fit one size of picture only"):
        fixed.require_sizes((36, 36))


def test_boxes_become_the_truth_of_cells() -> None:
    """The first box of a cell counts (data.c, fill_truth_region)."""
    labels = np.array([[[0.3, 0.8, 0.2, 0.1, 1], [0.4, 0.9, 0.1, 0.1, 0], [0] * 5]], np.float32)
    truth = in_cells(labels, 2, 2).reshape(4, 7)
    np.testing.assert_allclose(truth[2], [1, 0, 1, 0.6, 0.6, 0.2, 0.1], rtol=1e-5)
    assert not truth[[0, 1, 3]].any()
    head = Network(parse_cfg(NET + DETECTION, "a.cfg")).box_head()
    objects = head.objects(truth.ravel())
    np.testing.assert_allclose(objects.boxes[0], labels[0, 0, :4], rtol=1e-5)
    assert objects.classes.tolist() == [1]


def test_what_cannot_be_changed_is_refused() -> None:
    """Inputs that are no pictures, sequences, odd channels, colours beyond 0..1."""
    for text, what in (
        ("[net]\ninputs=9\nhue=.1\n[connected]\noutput=2\n[softmax]\n", "no height, width"),
        (NET.replace("=3", "=4") + KEYS + END, "colours need 1 or 3 channels, not 4"),
        (NET + "time_steps=2\nangle=3\n" + END, "the network works on sequences"),
    ):
        with pytest.raises(CfgError, match=what):
            Augmentation.of(parse_cfg(text, "a.cfg"))
    with pytest.raises(SourceError, match="colours from 0 to 1"):
        augmentation(NET + KEYS + END).apply(torch.full((2, 3, 24, 24), 3.0), None, 0, 0)
    told = without_effect(parse_cfg(NET + "angle=7\nmax_crop=9\n" + CHANNELS + YOLO, "a.cfg"))
    assert told == [
        "a.cfg:11: [yolo] angle, max_crop of [net]: no effect on a network that finds boxes"
    ]
