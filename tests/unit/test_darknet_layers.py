"""Layers whose golden cases follow accidents of the C code: the right gradient, by gradcheck."""

import weakref

import pytest
import torch
from torch import Tensor

from plinius.darknet.cfg import parse_cfg
from plinius.darknet.layers.base import Layer
from plinius.darknet.network import Network
from plinius.errors import CfgError, SourceError

IMAGE = "[net]\nbatch=6\ntime_steps=3\nheight=4\nwidth=4\nchannels=3\n"
FLAT = "[net]\nbatch=2\ntime_steps=3\ninputs=4\n"
CONV = "[conv]\nfilters=4\nsize=3\npad=1\nactivation=tanh\n"

NETWORKS = {
    "lrn": IMAGE + "[lrn]\nsize=3\nalpha=.1\n",
    "lrn of few channels": IMAGE + "[lrn]\nsize=7\nalpha=.1\n",
    "l2norm": IMAGE + "[l2norm]\n",
    "strided 1x1": IMAGE + "[conv]\nfilters=2\nsize=1\nstride=2\nactivation=tanh\n",
    "dilated": IMAGE + "[conv]\nfilters=2\nsize=3\npad=1\ndilation=2\nactivation=tanh\n",
    "uneven strides": IMAGE + "[conv]\nfilters=2\nsize=3\nstride_x=2\nactivation=tanh\n",
    "residual": IMAGE + CONV + "[conv]\nfilters=4\nactivation=tanh\n[shortcut]\nfrom=-2\n",
    "shortcut of a larger image": IMAGE
    + CONV
    + "[conv]\nfilters=3\nsize=3\nstride=2\npad=1\nactivation=tanh\n"
    + "[shortcut]\nfrom=0\nalpha=.5\nbeta=.25\nactivation=tanh\n",
    "shortcut of a smaller image": IMAGE
    + "[conv]\nfilters=3\nsize=3\nstride=2\npad=1\nactivation=tanh\n[upsample]\n"
    + "[shortcut]\nfrom=0\nalpha=.5\nbeta=.25\nactivation=tanh\n",
    "shortcut of several": IMAGE + CONV + CONV + CONV + "[shortcut]\nfrom=-2,-3\n",
    "route of groups": IMAGE + CONV + CONV + "[route]\nlayers=-1,0\ngroups=2\ngroup_id=1\n",
    "sam": IMAGE + CONV + CONV + "[sam]\nfrom=0\n",
    "scale_channels": IMAGE + CONV + "[avgpool]\n[scale_channels]\nfrom=0\nactivation=tanh\n",
    "local_avgpool": IMAGE + CONV + "[local_avgpool]\nsize=3\nstride=1\n",
    "maxpool_depth": IMAGE + CONV + "[max]\nmaxpool_depth=1\nout_channels=3\n",
    "crnn of the fork": FLAT + "[crnn]\nhidden=2\noutput=3\nsize=1\nactivation=tanh\n",
    "deconvolutional": IMAGE + "[deconv]\nfilters=2\nsize=3\nstride=2\npadding=1\n",
    "local": IMAGE + "[local]\nfilters=2\nsize=3\npad=1\n",
    "reorg": IMAGE + CONV + "[reorg]\nstride=2\n",
    "rnn": FLAT + "[rnn]\noutput=3\nactivation=tanh\n",
    "rnn with shortcut": FLAT + "[rnn]\noutput=3\nactivation=tanh\nshortcut=1\n",
    "gru": FLAT + "[gru]\noutput=3\n",
    "gru with tanh": FLAT + "[gru]\noutput=3\ntanh=1\n",
    "lstm": FLAT + "[lstm]\noutput=3\n",
    "crnn": IMAGE + "[crnn]\nhidden_filters=2\noutput_filters=2\nactivation=tanh\n",
}


def network(text: str, seed: int = 1) -> Network:
    """The network of `text`."""
    return Network(parse_cfg(text, "a.cfg"), seed=seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_formula(name: str) -> None:
    """Of the input and of every parameter, against differences in float64."""
    net = network(NETWORKS[name]).double().train()
    rows = 6
    x = torch.rand((rows, *net.input_shape), generator=net.generator, dtype=torch.float64) + 0.1
    parameters = [parameter for parameter in net.parameters() if parameter.numel()]

    def run(x: Tensor, *_: Tensor) -> Tensor:
        net.reset_states()
        return net.outputs(x)[-1].tanh()

    inputs = (x.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_normalization_is_the_originals_loop(size: int) -> None:
    """The sums of the original, channel after channel, also where the window is wider."""
    net = network(f"[net]\nheight=1\nwidth=1\nchannels=4\n[lrn]\nsize={size}\nalpha=.05\n[cost]\n")
    x = torch.tensor([0.5, 1.5, -2.0, 1.0])
    squares = (x * x).tolist()
    norms = [1 + 0.05 * sum(squares[: size // 2])]
    for k in range(1, 4):
        norms.append(norms[-1])
        if (gone := k - (size - 1) // 2 - 1) >= 0:
            norms[k] -= 0.05 * squares[gone]
        if (new := k + size // 2) < 4:
            norms[k] += 0.05 * squares[new]
    if size // 2 >= 4:
        norms = [1 + 0.05 * sum(squares)] * 4  # the original reads behind its array
    expected = x * torch.tensor(norms) ** -0.75
    torch.testing.assert_close(net.outputs(x.reshape(1, 4, 1, 1))[0].flatten(), expected)


def test_outputs_die_with_their_last_use() -> None:
    """Inference holds what a later layer names, and no more than three outputs beside it."""
    text = "[net]\nheight=4\nwidth=4\nchannels=2\n" + CONV.replace("4", "2") * 20
    text += "[shortcut]\nfrom=2\n" + CONV.replace("4", "2") * 5 + "[cost]\n"
    net = network(text).eval()
    alive: list[weakref.ref[Tensor]] = []
    most: list[int] = []

    def watch(_layer: Layer, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        alive.append(weakref.ref(y))
        most.append(sum(output() is not None for output in alive))

    for layer in net.sequence[:-1]:
        layer.register_forward_hook(watch)
    with torch.no_grad():
        y = net(torch.rand(2, 2, 4, 4))
    assert len(most) == 26
    assert max(most[:19]) <= 4
    assert max(most[22:]) <= 3
    assert y.shape == (2, 32)


def test_a_backward_pass_ends_at_its_stop() -> None:
    """A stopbackward of n ends the backward pass until iteration n, one of 1 always."""
    text = "[net]\nbatch=2\ninputs=3\n[conn]\noutput=3\n[conn]\noutput=3\nstopbackward={}\n"
    text += "[route]\nlayers=0,1\n[conn]\noutput=2\n[softmax]\n"
    x, truth = torch.rand(2, 3), torch.eye(2)
    for stop, seen, stops in ((1, 9999, True), (5, 8, True), (5, 10, False), (0, 0, False)):
        net = network(text.format(stop))
        net.seen = seen
        net.loss(x, truth)[0].backward()
        gradients = [bool(net.layers[i].weights.grad.any()) for i in (0, 1, 3)]
        assert gradients == [not stops, not stops, True]


def test_weights_that_no_cost_reaches_still_decay() -> None:
    """They have a gradient of 0, so that the optimizer does not pass them over."""
    text = "[net]\nbatch=2\ninputs=3\n[conn]\noutput=3\n[conn]\noutput=2\n[route]\nlayers=0\n"
    net = network(text + "[conn]\noutput=2\n[softmax]\n")
    net.loss(torch.rand(2, 3), torch.eye(2))[0].backward()
    unused = net.layers[1].weights.grad
    assert unused is not None
    assert not unused.any()


def test_states_are_buffers_that_later_passes_begin_with() -> None:
    """Kept for as many sequences as in the cfg; another number begins at 0 and leaves no trace."""
    net = network(FLAT + "[lstm]\noutput=3\n[softmax]\n").eval()
    assert {name for name, _ in net.named_buffers()} == {"layers.0.state", "layers.0.cell"}
    x = torch.rand(6, 4)
    first, second = net(x), net(x)
    assert not torch.equal(first, second)
    net(torch.rand(15, 4))
    net.reset_states()
    assert torch.equal(net(x), first)
    with pytest.raises(ValueError, match="not a multiple of 3 time steps"):
        net(torch.rand(4, 4))


YOLO = (
    "[net]\nbatch=1\nheight=8\nwidth=8\nchannels=7\n[yolo]\nclasses=2\nnum=1\nanchors=4,4\nmax=2\n"
)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1.5, 0.5, 0.1, 0.1, 0], "does not lie in its picture"),
        ([0.5, 0.5, 0.0, 0.1, 0], "does not lie in its picture"),
        ([0.5, float("nan"), 0.1, 0.1, 0], "does not lie in its picture"),
        ([0.5, 0.5, 0.1, 0.1, 2], "a class that the network does not have"),
        ([0.5, 0.5, 0.1, 0.1, -1], "a class that the network does not have"),
    ],
)
@pytest.mark.parametrize("kind", ["yolo", "region"])
def test_truths_that_describe_nothing_are_refused(
    kind: str, box: list[float], message: str
) -> None:
    """The original writes to memory of others for such boxes and classes."""
    net = network(YOLO.replace("yolo", kind))
    truth = torch.tensor([[*box, 0, 0, 0, 0, 0]])
    with pytest.raises(SourceError, match=message):
        net.loss(torch.rand(1, 7, 8, 8), truth)


def test_box_losses_of_the_fork_are_for_inference() -> None:
    """iou_loss and new_coords build and infer; training says that it has not their gradient."""
    x = torch.rand(1, 7, 8, 8)
    plain = network(YOLO)(x).reshape(7, 64)
    for options in ("iou_loss=ciou\nscale_x_y=1.2", "new_coords=1"):
        net = network(YOLO + options + "\n")
        y = net(x).reshape(7, 64)
        if "new" in options:
            torch.testing.assert_close(y, x.reshape(7, 64))
        else:
            torch.testing.assert_close(y[:2], plain[:2] * 1.2 - 0.1)
            torch.testing.assert_close(y[2:], plain[2:])
        with pytest.raises(CfgError, match="can be used, but not trained"):
            net.require_trainable()


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        *(("mish", 1.0, 0.86509839), ("mish", -2.0, -0.25250152), ("swish", 2.0, 1.76159416)),
        *(("relu6", 7.0, 6.0), ("relu6", -1.0, 0.0), ("hard_mish", -1.0, -0.5)),
        *(("hard_mish", -3.0, 0.0), ("hard_mish", 2.0, 2.0), ("gelu", 1.0, 0.84119199)),
    ],
)
def test_activations_of_the_fork(name: str, at: float, value: float) -> None:
    """Values of the published formulas, and gradients by differences."""
    net = network(f"[net]\ninputs=1\n[activation]\nactivation={name}\n[cost]\n").double()
    x = torch.tensor([[at]], dtype=torch.float64, requires_grad=True)
    assert net(x).item() == pytest.approx(value, abs=1e-6)
    assert torch.autograd.gradcheck(net, (x,))
