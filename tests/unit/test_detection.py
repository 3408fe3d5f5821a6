"""Boxes that networks find, and the average precision of them."""

import numpy as np
import pytest
import torch

from plinius.darknet.cfg import parse_cfg
from plinius.darknet.losses.base import BoxLoss
from plinius.darknet.losses.boxes import Truth, overlap
from plinius.darknet.network import Network
from plinius.errors import CfgError
from plinius.training.detection import Found, average_precision, detect

BOX = [0.375, 0.625, 0.25, 0.5]
HEADS = {
    "yolo": (7, "[yolo]\nclasses=2\nnum=1\nanchors=2,4\nmax=2\n", (2, 4)),
    "region": (7, "[region]\nclasses=2\nnum=1\nanchors=.5,1\nmax=2\nsoftmax=0\n", (2, 4)),
}


def boxes(*rows: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows as an array of boxes."""
    return np.array(rows, np.float32).reshape(-1, 4)


def test_overlaps_are_intersection_over_union() -> None:
    """Of equal, half covered, touching, distant and empty boxes."""
    a = boxes([0.5, 0.5, 0.2, 0.2])
    b = boxes(
        [0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], [0.7, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]
    )
    np.testing.assert_allclose(overlap(a, b)[0], [1, 1 / 3, 0, 0], atol=1e-6)
    assert np.isnan(overlap(boxes([0, 0, 0, 0]), boxes([0, 0, 0, 0]))).all()


@pytest.mark.parametrize("kind", HEADS)
def test_an_output_without_delta_is_found_again(kind: str) -> None:
    """What the loss wants of the network is what detection reads from it: box, class, score."""
    channels, head, _ = HEADS[kind]
    net = Network(parse_cfg(f"[net]\nheight=4\nwidth=4\nchannels={channels}\nbatch=1\n{head}", "a"))
    truth = torch.zeros(1, 10)
    truth[0, :5] = torch.tensor([*BOX, 1])
    net.seen = 1 << 20
    x = torch.full((1, channels, 4, 4), -9.0)
    x[:, 2:4] = 0
    for _ in range(400):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(net.loss(x, truth)[0], x)
        x = (x - 0.5 * gradient).detach()
    with torch.no_grad():
        (found,) = detect(net.eval(), x, threshold=0.5)
    assert found.classes.tolist() == [1]
    np.testing.assert_allclose(found.boxes[0], BOX, atol=0.02)
    assert found.scores[0] > 0.9


def test_a_detection_layer_reads_its_own_truth() -> None:
    """A cell's output that equals its truth gives the same box as the truth does."""
    text = "[net]\ninputs=36\nbatch=1\n[detection]\nclasses=4\ncoords=4\nside=2\nnum=1\nsqrt=1\n"
    net = Network(parse_cfg(text, "a"))
    head = net.box_head()
    assert isinstance(head, BoxLoss)
    truth = np.zeros((4, 9), np.float32)
    truth[2] = [1, 0, 0, 1, 0, 0.5, 0.25, 0.3, 0.2]
    output = np.zeros(36, np.float32)
    output[2 * 4 + 2] = 1  # the class
    output[16 + 2] = 0.9  # its confidence
    output[20 + 2 * 4 : 20 + 3 * 4] = [0.5, 0.25, 0.3**0.5, 0.2**0.5]
    wanted = head.objects(truth.ravel())
    assert wanted.classes.tolist() == [2]
    np.testing.assert_allclose(wanted.boxes[0], [0.25, 0.625, 0.3, 0.2])
    found, scores = head.found(output)
    at, label = np.unravel_index(scores.argmax(), scores.shape)
    assert (label, scores.max()) == (2, pytest.approx(0.9))
    np.testing.assert_allclose(found[at], wanted.boxes[0], rtol=1e-6)


def test_only_the_best_of_overlapping_boxes_stays() -> None:
    """Per class; boxes of other classes, and far ones, stay too."""
    net = Network(parse_cfg("[net]\nheight=4\nwidth=4\nchannels=7\n" + HEADS["yolo"][1], "a"))
    x = torch.full((1, 7, 4, 4), -12.0)
    x[0, :4] = 0
    x[0, 2:4] = 1.0
    for row, column, score in ((1, 1, 4.0), (1, 2, 3.0), (3, 3, 2.0)):
        x[0, 4, row, column] = score
        x[0, 5, row, column] = 9
    x[0, 6, 1, 1] = 9
    with torch.no_grad():
        (found,) = detect(net.eval(), x, threshold=0.1)
    pairs = zip(found.classes.tolist(), found.scores.tolist(), strict=True)
    assert sorted((label, round(score, 2)) for label, score in pairs) == [
        *((0, 0.88), (0, 0.98), (1, 0.98))
    ]


def test_average_precision_is_the_area_under_the_curve() -> None:
    """Right, wrong, right of three truths: 1/3 * 1 + 1/3 * 2/3; a truth is matched once."""
    far = [0.9, 0.9, 0.1, 0.1]
    rest = np.zeros((0, 0), np.float32)
    truths = [
        Truth(boxes(BOX, far), np.array([0, 0]), rest),
        Truth(boxes(BOX), np.array([0]), rest),
    ]
    found = [
        Found(boxes(BOX, BOX), np.array([0, 0]), np.array([0.9, 0.8], np.float32)),
        Found(boxes(BOX), np.array([0]), np.array([0.7], np.float32)),
    ]
    assert average_precision(found, truths, 0) == pytest.approx(1 / 3 + 2 / 9)
    assert average_precision(found, truths, 1) == 0
    perfect = [Found(t.boxes, t.classes, np.ones(len(t.boxes), np.float32)) for t in truths]
    assert average_precision(perfect, truths, 0) == 1
    nothing = [Found(boxes(), np.array([], np.int64), np.array([], np.float32))] * 2
    assert average_precision(nothing, truths, 0) == 0


def test_heads_of_other_classes_are_refused() -> None:
    """One cannot say which class a box has."""
    text = "[net]\nheight=4\nwidth=4\nchannels=7\n[yolo]\nclasses=2\nmax=2\n[route]\nlayers=0\n"
    text += "[conv]\nfilters=8\nactivation=linear\n[yolo]\nclasses=3\nmax=2\n"
    with pytest.raises(CfgError, match="3 classes, another 2"):
        Network(parse_cfg(text, "a")).box_head()
