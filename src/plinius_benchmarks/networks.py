"""Networks to measure with: mnist.cfg by hand, the original's size sweep, two others."""

import torch
from torch import nn

from plinius.darknet.cfg import Cfg, parse_cfg
from plinius.darknet.network import Network

_NET = """[net]
batch={batch}
subdivisions=1
height=28
width=28
channels=1
learning_rate=0.1
policy=poly
power=4
max_batches=500
momentum=0.9
decay=0.0005
"""
_CONVOLUTION = """
[convolutional]
batch_normalize=1
filters={filters}
size=3
stride=1
pad=1
activation=leaky
"""
_POOL = "\n[maxpool]\nsize=2\nstride=2\n"
_END = """
[dropout]
probability=.5

[convolutional]
filters=10
size=1
stride=1
pad=1
activation=leaky

[avgpool]

[softmax]
groups=1
"""


def big_cfg(layers: int) -> Cfg:
    """big5.cfg ... big45.cfg of the original: `layers` of 256 filters, 2.4 MB each."""
    middle = _CONVOLUTION.format(filters=256) * layers
    ends = _CONVOLUTION.format(filters=32), _CONVOLUTION.format(filters=128)
    text = _NET.format(batch=128) + ends[0] + _POOL + middle + _POOL + ends[1] + _END
    return parse_cfg(text, f"big{layers}.cfg")


def five_convolutions(batch: int) -> Cfg:
    """A network of five convolutional layers, as the paper's Fig. 8 has it."""
    text = _NET.format(batch=batch) + _CONVOLUTION.format(filters=32) + _POOL
    text += _CONVOLUTION.format(filters=64) * 2 + _POOL + _CONVOLUTION.format(filters=128) + _END
    return parse_cfg(text, "five.cfg")


def big(layers: int) -> Network:
    """The network of `big_cfg`."""
    return Network(big_cfg(layers))


class ResNet18(nn.Module):
    """18 layers and 11.2 million parameters, for (n, 3, 32, 32) images of 10 classes.

    He et al., "Deep Residual Learning for Image Recognition" (2015), with the first layer that is
    usual for images of this size.
    """

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), *_norm(64)]
        inside = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            stages += [_Block(inside, width, stride), _Block(width, width, 1)]
            inside = width
        stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
        self.stages = nn.Sequential(*stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 10) logits."""
        out: torch.Tensor = self.stages(x)
        return out


class _Block(nn.Module):
    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inside, width, 3, stride, 1, bias=False), *_norm(width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        short = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), _norm(width)[0])
        self.short: nn.Module = short if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) + self.short(x))


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU()]


class Transformer(nn.Module):
    """A causal language model of 26 million parameters, 104 MB; (n, t) ids to (n, t, 4096)."""

    def __init__(self, width: int = 512, layers: int = 7, words: int = 4096) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(512, width)
        layer = nn.TransformerEncoderLayer(
            width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next word."""
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.words(ids) + self.places(torch.arange(length))
        out: torch.Tensor = self.head(self.blocks(x, mask, is_causal=True))
        return out


def mnist_by_hand() -> nn.Sequential:
    """demo/mnist.cfg in PyTorch's own layers."""

    def convolution(channels: int, filters: int) -> list[nn.Module]:
        layer = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        return [layer, nn.BatchNorm2d(filters), nn.LeakyReLU(0.1)]

    layers = [*convolution(1, 32), nn.MaxPool2d(2)]
    for channels in (32, *[64] * 8):
        layers += convolution(channels, 64)
    layers += [nn.MaxPool2d(2), *convolution(64, 128), nn.Dropout(0.5)]
    layers += [nn.Conv2d(128, 10, 1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)
