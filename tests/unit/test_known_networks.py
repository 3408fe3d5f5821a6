"""Networks that everybody knows, written here in short: they build with their published sizes."""

import struct

import pytest

from plinius.darknet.cfg import Cfg, parse_cfg
from plinius.darknet.description import Description, describe, table
from plinius.darknet.drawing import draw

ANCHORS = "anchors=10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"


def net(side: int) -> str:
    """A [net] for pictures of three colours."""
    return f"[net]\nbatch=1\nheight={side}\nwidth={side}\nchannels=3\n"


def conv(
    filters: int, size: int = 3, stride: int = 1, norm: int = 1, activation: str = "leaky"
) -> str:
    """A [convolutional] with padding."""
    return (
        f"[convolutional]\nbatch_normalize={norm}\nfilters={filters}\nsize={size}\n"
        f"stride={stride}\npad=1\nactivation={activation}\n"
    )


def last(filters: int) -> str:
    """A [convolutional] that ends a network."""
    return conv(filters, 1, 1, 0, "linear")


MAX = "[maxpool]\nsize=2\nstride=2\n"
END = "[avgpool]\n[softmax]\n"


def bottlenecks(*filters: int) -> str:
    """1x1 and 3x3 filters in turn."""
    return "".join(conv(n, 1 if i % 2 == 0 else 3) for i, n in enumerate(filters))


def residuals(count: int, filters: int) -> str:
    """Blocks of darknet53."""
    return (bottlenecks(filters, 2 * filters) + "[shortcut]\nfrom=-3\n") * count


def backbone() -> str:
    """The 75 layers that darknet53 and yolov3 share."""
    text = conv(32)
    for count, filters in ((1, 32), (2, 64), (8, 128), (8, 256), (4, 512)):
        text += conv(2 * filters, 3, 2) + residuals(count, filters)
    return text


def head(filters: int, mask: str) -> str:
    """The detection layers of yolov3 at one size of cell."""
    yolo = f"[yolo]\nmask={mask}\n{ANCHORS}\nclasses=80\nnum=9\n"
    return bottlenecks(filters, 2 * filters) * 3 + last(255) + yolo


def up(filters: int, layer: int) -> str:
    """From one size of cell to the next."""
    more = f"[upsample]\nstride=2\n[route]\nlayers=-1, {layer}\n"
    return "[route]\nlayers=-4\n" + conv(filters, 1) + more


def yolov3() -> str:
    """Three heads."""
    text = net(608) + backbone() + head(512, "6,7,8") + up(256, 61)
    return text + head(256, "3,4,5") + up(128, 36) + head(128, "0,1,2")


def yolov3_tiny() -> str:
    """Two heads."""
    text = net(416) + MAX.join(conv(n) for n in (16, 32, 64, 128, 256, 512))
    text += "[maxpool]\nsize=2\nstride=1\n" + conv(1024) + conv(256, 1) + conv(512) + last(255)
    yolo = "[yolo]\nanchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\nclasses=80\nnum=6\nmask="
    return text + yolo + "3,4,5\n" + up(128, 8) + conv(256) + last(255) + yolo + "0,1,2\n"


def dense(filters: int, dropouts: str) -> str:
    """A connected layer of the networks of 2012 to 2015."""
    return f"[connected]\noutput={filters}\nactivation=relu\n{dropouts}"


def vgg16() -> str:
    """Thirteen convolutions, three connected layers."""
    text = net(256) + "[crop]\nflip=1\ncrop_height=224\ncrop_width=224\n"
    for count, filters in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        text += conv(filters, 3, 1, 0, "relu") * count + MAX
    return text + dense(4096, "[dropout]\n") * 2 + dense(1000, "[softmax]\n")


def alexnet() -> str:
    """Five convolutions, three connected layers."""
    pool = "[maxpool]\nsize=3\nstride=2\npadding=0\n"
    first = conv(96, 11, 4, 0, "relu").replace("pad=1", "pad=0")
    text = net(256) + "[crop]\ncrop_height=227\ncrop_width=227\n" + first + pool
    text += conv(256, 5, 1, 0, "relu") + pool + conv(384, 3, 1, 0, "relu") * 2
    text += conv(256, 3, 1, 0, "relu") + pool
    return text + dense(4096, "[dropout]\n") * 2 + dense(1000, "[softmax]\n")


def darknet19() -> str:
    """The classifier of yolov2."""
    text = net(256) + conv(32) + MAX + conv(64) + MAX
    for filters, pairs in ((128, 1), (256, 1), (512, 2), (1024, 2)):
        text += conv(filters) + (conv(filters // 2, 1) + conv(filters)) * pairs
        text += MAX if filters < 1024 else ""
    return text + last(1000) + END


def extraction_layers() -> str:
    """The convolutions that extraction and yolov1 share."""
    text = conv(64, 7, 2) + MAX + conv(192) + MAX + bottlenecks(128, 256, 256, 512) + MAX
    text += bottlenecks(256, 512) * 4 + bottlenecks(512, 1024) + MAX
    return text + bottlenecks(512, 1024) * 2


def yolov1() -> str:
    """With a [local] layer and a [detection]."""
    text = net(448) + extraction_layers() + conv(1024) + conv(1024, 3, 2) + conv(1024) * 2
    text += "[local]\nsize=3\nstride=1\npad=1\nfilters=256\nactivation=leaky\n[dropout]\n"
    text += "[connected]\noutput=1715\nactivation=linear\n"
    return text + "[detection]\nclasses=20\ncoords=4\nside=7\nnum=3\nsqrt=1\nrescore=1\n"


def resnet50() -> str:
    """Shortcuts between layers of other sizes."""
    text = net(256) + conv(64, 7, 2) + MAX
    for filters, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(count):
            stride = 2 if block == 0 and filters > 64 else 1
            text += conv(filters, 1) + conv(filters, 3, stride)
            text += conv(4 * filters, 1, 1, 1, "linear")
            text += "[shortcut]\nfrom=-4\nactivation=leaky\n"
    return text + "[avgpool]\n" + last(1000) + "[softmax]\n"


def densenet201() -> str:
    """Routes that grow by 32 channels."""
    text = net(256) + conv(64, 7, 2) + MAX
    for count, between in ((6, 128), (12, 256), (48, 512), (32, 0)):
        text += (conv(128, 1) + conv(32) + "[route]\nlayers=-1,-3\n") * count
        text += conv(between, 1) + MAX if between else ""
    return text + "[avgpool]\n" + last(1000) + "[softmax]\n"


KNOWN = {
    "darknet53": (net(256) + backbone() + "[avgpool]\n" + last(1000) + "[softmax]\n", 41_645_640),
    "yolov3": (yolov3(), 62_001_757),
    "yolov3-tiny": (yolov3_tiny(), 8_858_734),
    "vgg-16": (vgg16(), 138_357_544),
    "alexnet": (alexnet(), 62_378_344),
    "darknet19": (darknet19(), 20_856_776),
    "extraction": (net(224) + extraction_layers() + last(1000) + END, 23_455_400),
    "yolov1": (yolov1(), 197_328_243),
    "resnet50": (resnet50(), 22_825_896),
    "densenet201": (densenet201(), 17_206_440),
}


def described(name: str) -> tuple[Cfg, Description]:
    """A known network, without memory for its arrays."""
    cfg = parse_cfg(KNOWN[name][0], f"{name}.cfg")
    return cfg, describe(cfg)


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_have_their_parameters(name: str) -> None:
    """As many floats are in a .weights file as in the published one."""
    cfg, found = described(name)
    assert found.parameters == KNOWN[name][1]
    assert len(table(found).splitlines()) == len(cfg.sections) + 2
    assert draw(found).count("<rect") == len(cfg.sections) + 1


def test_yolov3_has_its_published_file_and_operations() -> None:
    """248,007,048 bytes, 106 layers after [net] with 107 in all, and 140.7 BFLOPs at 608 pixels."""
    _, found = described("yolov3")
    assert found.weights_file_bytes == 248_007_048 == struct.calcsize("<iiiQ") + 4 * 62_001_757
    assert len(found.rows) == 107
    assert found.bflops == pytest.approx(140.69, abs=0.05)
    assert [row.output for row in found.rows if row.kind == "yolo"] == [
        *((255, 19, 19), (255, 38, 38), (255, 76, 76))
    ]
    assert found.rows[98].sources == (97, 36)
