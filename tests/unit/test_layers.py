"""Layers, losses and the network against their written formulas."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from plinius.darknet.activations import ACTIVATIONS, FORK
from plinius.darknet.cfg import parse_cfg
from plinius.darknet.network import Network
from plinius.darknet.norm import darknet_norm
from plinius.darknet.optimizer import make_optimizer, set_rate
from plinius.errors import CfgError

SMALL = """[net]
batch=6
height=8
width=8
channels=3
learning_rate=.05
decay=.01
[convolutional]
filters=8
size=3
pad=1
batch_normalize=1
activation=leaky
[maxpool]
size=2
stride=2
[dropout]
probability=.25
[convolutional]
filters=4
size=1
activation=leaky
[avgpool]
[softmax]
"""


def network(text: str, **options: object) -> Network:
    """The network of `text`."""
    return Network(parse_cfg(text, "a.cfg"), **options)  # type: ignore[arg-type]


def flat(inputs: int, *sections: str) -> Network:
    """A network of `sections` on `inputs` values."""
    return network(f"[net]\nbatch=4\ninputs={inputs}\n" + "\n".join(sections) + "\n")


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    """Images and one-hot truths for SMALL."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(rows, 3, 8, 8, generator=generator)
    return x, torch.eye(4)[torch.randint(0, 4, (rows,), generator=generator)]


def test_strided_1x1_filters_train_on_one_thread() -> None:
    """In channels_last torch's own backward pass crashes there (2.13, AVX2)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        text = "[net]\nbatch=6\nheight=8\nwidth=8\nchannels=3\n"
        text += "[convolutional]\nsize=3\npad=1\nfilters=5\n"
        text += "[convolutional]\nfilters=4\nsize=1\nstride=2\n[avgpool]\n[softmax]\n"
        gradients = []
        for layout in (torch.contiguous_format, torch.channels_last):
            one = network(text)
            one.to(memory_format=layout)  # type: ignore[call-overload]
            x, truth = batch()
            one.loss(x.to(memory_format=layout), truth)[0].backward()
            gradients.append([p.grad for p in one.parameters()])
        for plain, last in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, last)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(16, 5, 7, 3), (64, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm_is_darknets_formula(shape: tuple[int, ...], channels_last: bool) -> None:
    """Forward, backward and rolling statistics follow the formulas of the original, in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=generator) * 0.01 + 0.02
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    g = torch.randn(5, generator=generator).requires_grad_()
    b = torch.randn(5, generator=generator).requires_grad_()
    rolling_mean, rolling_variance = torch.ones(5), torch.full((5,), 2.0)
    y = darknet_norm(x, g, b, rolling_mean, rolling_variance, True)
    d = torch.randn(y.shape, generator=generator)
    y.backward(d)

    x64 = x.detach().double().transpose(0, 1).flatten(1)
    d64 = d.double().transpose(0, 1).flatten(1)
    n = x64.shape[1]
    m, v = x64.mean(1, keepdim=True), x64.var(1, keepdim=True)
    normal = (x64 - m) / (v.sqrt() + 1e-6)
    g64 = g.detach().double()[:, None]
    dn = d64 * g64
    mean_delta = dn.sum(1, keepdim=True) * -1 / (v + 1e-5).sqrt()
    variance_delta = (dn * (x64 - m)).sum(1, keepdim=True) * -0.5 * (v + 1e-5) ** -1.5
    dx = dn / (v + 1e-5).sqrt() + variance_delta * 2 * (x64 - m) / n + mean_delta / n

    def close(ours: Tensor, reference: Tensor) -> None:
        ours = ours.detach().double()
        ours = ours.transpose(0, 1).flatten(1) if ours.dim() > 1 else ours
        assert (ours - reference).abs().max() <= 2e-5 * reference.abs().max()

    assert x.grad is not None
    assert g.grad is not None
    assert b.grad is not None
    close(y, g64 * normal + b.detach().double()[:, None])
    close(x.grad, dx)
    close(g.grad, (d64 * normal).sum(1))
    close(b.grad, d64.sum(1))
    close(rolling_mean, 0.99 + 0.01 * m[:, 0])
    close(rolling_variance, 1.98 + 0.01 * v[:, 0])


def test_batch_norm_needs_two_values() -> None:
    """One value a channel has no variance: a clear refusal, not NaN."""
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="larger batch"):
        darknet_norm(torch.ones(1, 3), ones, ones, ones, ones, True)


def test_batch_norm_follows_torch_on_request() -> None:
    """batch_norm="torch" is PyTorch's own layer, momentum 0.01."""
    net = network(SMALL, batch_norm="torch")
    reference = nn.BatchNorm2d(8, momentum=0.01)
    reference.running_var.zero_()  # type: ignore[union-attr]
    x, _ = batch()
    convolved = functional.conv2d(x, net.layers[0].weights, padding=1)  # type: ignore[arg-type]
    expected = functional.leaky_relu(reference(convolved), 0.1)
    torch.testing.assert_close(net.outputs(x)[0], expected)
    torch.testing.assert_close(net.layers[0].rolling_variance, reference.running_var)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - set(FORK)))
def test_activations_have_darknets_gradients(name: str) -> None:
    """Gradients are the original's functions of the output, corners included."""
    gradients = {
        "logistic": lambda y: y * (1 - y),
        "loggy": lambda y: 2 * (1 - (y + 1) / 2) * ((y + 1) / 2),
        "relu": lambda y: (y > 0).float(),
        "elu": lambda y: torch.where(y >= 0, 1, y + 1),
        "selu": lambda y: torch.where(y >= 0, 1.0507, y + 1.0507 * 1.6732),
        "relie": lambda y: torch.where(y > 0, 1, 0.01),
        "plse": lambda y: torch.where((y < 0) | (y > 1), 0.01, 0.125),
        "hardtan": lambda y: ((y > -1) & (y < 1)).float(),
        "lhtan": lambda y: torch.where((y > 0) & (y < 1), 1, 0.001),
        "linear": torch.ones_like,
        "ramp": lambda y: (y > 0).float() + 0.1,
        "leaky": lambda y: torch.where(y > 0, 1, 0.1),
        "tanh": lambda y: 1 - y * y,
        "stair": lambda y: (y.floor() != y).float(),
    }
    points = torch.arange(-60, 61) / 10
    x = torch.cat([points, points + 0.0371]).requires_grad_()
    y = ACTIVATIONS[name](x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradients[name](y.detach()).float(), rtol=1e-4, atol=1e-6)


def test_strided_1x1_filters_read_every_second_pixel() -> None:
    """A 1x1 convolution obeys its stride, where the original reads the first pixels in a row."""
    net = network("[net]\nheight=4\nwidth=6\nchannels=2\n[conv]\nfilters=3\nstride=2\n[cost]\n")
    x = torch.rand(2, 2, 4, 6)
    layer = net.layers[0]
    summed = torch.einsum("bchw,oc->bohw", x[:, :, ::2, ::2], layer.weights[:, :, 0, 0])  # type: ignore[index]
    torch.testing.assert_close(net.outputs(x)[0], summed.sigmoid())


@pytest.mark.parametrize("options", ["size=3\nstride=2", "size=2\nstride=1", "size=4\nstride=2"])
def test_maxpool_pads_by_darknets_rule(options: str) -> None:
    """Each output is the maximum of what the window, begun at -(padding/2), sees of the image."""
    net = network(f"[net]\nheight=5\nwidth=7\nchannels=1\n[maxpool]\n{options}\n[cost]\n")
    section = net.sequence[0].section
    size, stride = section.integer("size"), section.integer("stride")
    start = -((size - 1) // 2)
    x = torch.rand(1, 1, 5, 7) - 2
    y = net.outputs(x)[0]
    assert y.shape == (1, 1, (5 - 1) // stride + 1, (7 - 1) // stride + 1)
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            top, left = start + i * stride, start + j * stride
            seen = x[0, 0, max(top, 0) : top + size, max(left, 0) : left + size]
            assert y[0, 0, i, j] == seen.max()


def test_dropout_draws_from_the_networks_generator() -> None:
    """The same generator state gives the same mask; inference drops nothing; the mean stays."""
    net = flat(4000, "[dropout]\nprobability=.25", "[cost]")
    x = torch.ones(4, 4000)
    state, before = net.generator.get_state(), torch.get_rng_state()
    first = net(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(net(x), first)
    net.generator.set_state(state)
    assert torch.equal(net(x), first)
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert first.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(net.eval()(x), x)


@pytest.mark.parametrize(
    ("options", "error", "slope"),
    [
        ("type=sse", lambda d: d * d, lambda d: d),
        ("type=sse\nscale=.5", lambda d: d * d, lambda d: d / 2),
        ("type=L1", abs, lambda d: math.copysign(1, d)),
        (
            "type=smooth",
            lambda d: d * d if abs(d) < 1 else 2 * abs(d) - 1,
            lambda d: max(-1.0, min(1.0, d)),
        ),
    ],
)
def test_costs_move_towards_the_truth(options: str, error: object, slope: object) -> None:
    """Reported errors and deltas are the formulas; smooth's delta has the right sign beyond 1."""
    differences = [-3.0, -0.5, 0.25, 2.0]
    net = flat(4, "[dropout]\nprobability=0", f"[cost]\n{options}")
    x = torch.zeros(1, 4, requires_grad=True)
    objective, reported = net.loss(x, torch.tensor([differences]))
    objective.backward()
    assert reported.item() == pytest.approx(sum(error(d) for d in differences))  # type: ignore[operator]
    assert x.grad is not None
    assert (-x.grad[0]).tolist() == pytest.approx([slope(d) for d in differences])  # type: ignore[operator]


def test_masked_cost_spares_marked_entries() -> None:
    """Truth -1234 takes an entry out of error and gradient."""
    net = flat(3, "[dropout]\nprobability=0", "[cost]\ntype=masked")
    x = torch.zeros(1, 3, requires_grad=True)
    objective, reported = net.loss(x, torch.tensor([[2.0, -1234.0, -1.0]]))
    objective.backward()
    assert reported.item() == 5
    assert x.grad is not None
    assert x.grad.tolist() == [[-2, 0, 1]]


def test_softmax_gives_the_cross_entropy_gradient() -> None:
    """For one-hot truth the gradient is that of the summed cross-entropy, also where p is 0."""
    net = flat(3, "[softmax]")
    x = torch.tensor([[1.0, -2.0, 0.5], [200.0, -200.0, 0.0]], requires_grad=True)
    objective, reported = net.loss(x, torch.tensor([[0.0, 1.0, 0.0]] * 2))
    objective.backward()
    twin = x.detach().clone().requires_grad_()
    entropy = functional.cross_entropy(twin, torch.tensor([1, 1]), reduction="sum")
    entropy.backward()
    assert x.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(reported, entropy.detach())


def test_a_network_without_a_cost_infers_and_does_not_train() -> None:
    """Inference needs no cost; loss() says what is missing, and takes no truth of other shape."""
    net = flat(3, "[connected]\noutput=2")
    assert net(torch.ones(5, 3)).shape == (5, 2)
    with pytest.raises(ValueError, match="the truth"):
        net.loss(torch.ones(5, 3), torch.ones(5, 1))
    with pytest.raises(CfgError, match="has no layer with a cost"):
        net.loss(torch.ones(5, 3), torch.ones(5, 2))


def test_memory_formats_agree() -> None:
    """channels_last changes neither outputs nor gradients, and survives through the layers."""
    one, other = network(SMALL), network(SMALL).to(memory_format=torch.channels_last)
    x, truth = batch()
    x_last = x.to(memory_format=torch.channels_last)
    for net, images in ((one, x), (other, x_last)):
        objective, _ = net.loss(images, truth)
        objective.backward()
    assert other.outputs(x_last)[0].is_contiguous(memory_format=torch.channels_last)
    plain = network(SMALL).eval().outputs(x)
    last = network(SMALL).to(memory_format=torch.channels_last).eval().outputs(x_last)
    for y, z in zip(plain, last, strict=True):
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)


def test_connected_layers_see_darknets_order() -> None:
    """After an image, a connected layer's weights count channel, row, column in any format."""
    text = "[net]\nheight=2\nwidth=3\nchannels=2\n[max]\n[connected]\nactivation=linear\n[cost]\n"
    net = network(text)
    x = torch.rand(4, 2, 2, 3)
    expected = x.reshape(4, 12) @ net.layers[1].weights.T  # type: ignore[union-attr, operator]
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("batch_norm", ["darknet", "torch"])
def test_bfloat16_autocast_trains(batch_norm: str) -> None:
    """Under autocast the loss stays near float32's, gradients and statistics stay float32."""
    end = "[connected]\noutput=4\nbatch_normalize=1\nactivation=linear\n[softmax]"
    text = SMALL.replace("[avgpool]\n[softmax]", end).replace("=.25", "=0")
    net, twin = network(text, batch_norm=batch_norm), network(text, batch_norm=batch_norm)
    net.to(memory_format=torch.channels_last)
    x, truth = batch(64)
    with torch.autocast("cpu", torch.bfloat16):
        objective, reported = net.loss(x.to(memory_format=torch.channels_last), truth)
    objective.backward()
    assert reported.item() == pytest.approx(twin.loss(x, truth)[1].item(), rel=0.05)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    statistics = twin.layers[0].rolling_variance
    torch.testing.assert_close(net.layers[0].rolling_variance, statistics, rtol=0.02, atol=1e-4)
    assert net.layers[0].rolling_variance.dtype == torch.float32


def test_starting_weights_have_darknets_distributions() -> None:
    """Filters are normal with deviation sqrt(2/fan-in), connected weights uniform within it."""
    text = "[net]\nheight=4\nwidth=4\nchannels=64\n[conv]\nfilters=128\nsize=3\npad=1\ngroups=2\n"
    net = network(text + "[conn]\noutput=32\n[cost]\n", seed=4)
    filters, connected = net.layers[0].weights, net.layers[1].weights
    assert isinstance(filters, Tensor)
    assert isinstance(connected, Tensor)
    assert filters.std().item() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.02)
    bound = math.sqrt(2 / (128 * 16))
    assert connected.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert connected.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_the_seed_decides_the_weights() -> None:
    """Same seed, same weights; and the global generator is left alone."""
    before = torch.get_rng_state()
    one, two, three = network(SMALL, seed=1), network(SMALL, seed=1), network(SMALL, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.layers[0].weights, two.layers[0].weights)  # type: ignore[arg-type]
    assert not torch.equal(one.layers[0].weights, three.layers[0].weights)  # type: ignore[arg-type]


def test_only_weights_decay_and_layers_scale_the_rate() -> None:
    """Parameter groups hold each parameter once, and set_rate obeys a layer's learning_rate."""
    text = SMALL.replace("size=1\n", "size=1\nlearning_rate=3\n")
    net = network(text)
    optimizer = make_optimizer(net, parse_cfg(text, "a.cfg").net)
    set_rate(optimizer, 0.5)
    found = [
        (group["lr"], group["weight_decay"], [tuple(p.shape) for p in group["params"]])
        for group in optimizer.param_groups
    ]
    assert found == [
        (0.5, 0.01, [(8, 3, 3, 3)]),
        (0.5, 0.0, [(8,), (8,)]),
        (1.5, 0.01, [(4, 8, 1, 1)]),
        (1.5, 0.0, [(4,)]),
    ]


def test_training_learns() -> None:
    """Thirty updates on one batch bring its cost down."""
    net = network(SMALL.replace("probability=.25", "probability=0"))
    optimizer = make_optimizer(net, parse_cfg(SMALL, "a.cfg").net)
    x, truth = batch()
    costs = []
    for _ in range(30):
        optimizer.zero_grad()
        objective, reported = net.loss(x, truth)
        (objective / len(x)).backward()
        optimizer.step()
        costs.append(reported.item())
    assert costs[-1] < 0.7 * costs[0]


def test_shapes_and_counts_are_told() -> None:
    """A network says its input shape, truth values a record, and floats in its weights file."""
    net = network(SMALL)
    assert (net.input_shape, net.inputs, net.truths) == ((3, 8, 8), 192, 4)
    assert net.parameter_count == 8 * 27 + 4 * 8 + 4 * 8 + 4
    assert net(torch.rand(2, 192)).shape == (2, 4)
