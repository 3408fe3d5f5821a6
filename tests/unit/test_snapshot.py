"""Snapshots and the run state they are taken of."""

import dataclasses

import pytest
import torch

from plinius.darknet.cfg import parse_cfg
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer
from plinius.errors import MismatchError
from plinius.snapshot import Snapshot, TensorBytes
from plinius.state import RunState, not_bit_exact, require_same_run, restore_model

CFG = """[net]
batch=4
inputs=6
learning_rate=0.1
momentum=0.9
[connected]
output=5
activation=leaky
[dropout]
probability=.5
[connected]
output=3
activation=linear
[softmax]
"""


def run(seed: int = 0, text: str = CFG) -> tuple[Network, torch.optim.SGD, RunState]:
    cfg = parse_cfg(text, "test.cfg")
    network = Network(cfg, seed=seed)
    optimizer = make_optimizer(network, cfg.net)
    return network, optimizer, RunState(network, optimizer, {"seed": seed})


def step(network: Network, optimizer: torch.optim.SGD, state: RunState) -> None:
    x = torch.linspace(0, 1, 24).reshape(4, 6)
    truth = torch.eye(3)[[0, 1, 2, 0]]
    optimizer.zero_grad()
    objective, reported = network.loss(x, truth)
    (objective / 4).backward()
    optimizer.step()
    state.iteration += 1
    state.update_average(float(reported.detach()) / 4)


def kept(snapshot: Snapshot) -> Snapshot:
    """A copy that later steps do not change."""
    tensors = tuple(
        dataclasses.replace(t, data=memoryview(bytearray(t.data))) for t in snapshot.tensors
    )
    return dataclasses.replace(snapshot, tensors=tensors)


def test_a_restored_run_takes_the_same_steps() -> None:
    """Parameters, momentum, dropout masks and the average go on bit for bit."""
    network, optimizer, state = run()
    for _ in range(3):
        step(network, optimizer, state)
    middle = kept(state.snapshot())
    for _ in range(3):
        step(network, optimizer, state)
    other = run()
    other[2].restore(middle)
    assert other[2].snapshot().digest() == middle.digest()
    for _ in range(3):
        step(*other)
    assert other[2].snapshot().digest() == state.snapshot().digest()


@pytest.mark.parametrize("forgotten", ["momentum.", "rng", "model."])
def test_every_part_of_the_state_decides_the_next_step(forgotten: str) -> None:
    """A run restored without it ends elsewhere."""
    network, optimizer, state = run()
    for _ in range(2):
        step(network, optimizer, state)
    middle = kept(state.snapshot())
    fresh = {t.name: t for t in kept(run(seed=9)[2].snapshot()).tensors}
    tensors = tuple(fresh[t.name] if t.name.startswith(forgotten) else t for t in middle.tensors)
    other = run()
    other[2].restore(dataclasses.replace(middle, tensors=tensors))
    step(*other)
    step(network, optimizer, state)
    model = [t.data for t in state.snapshot().tensors if t.name.startswith("model.")]
    theirs = [t.data for t in other[2].snapshot().tensors if t.name.startswith("model.")]
    assert model != theirs


def test_the_first_step_is_that_of_an_optimizer_without_momentum_yet() -> None:
    """Momentum that starts as zeros changes nothing."""
    network, optimizer, state = run()
    step(network, optimizer, state)
    cfg = parse_cfg(CFG, "test.cfg")
    plain = Network(cfg)
    step(plain, make_optimizer(plain, cfg.net), run()[2])
    for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_digest_tells_states_apart_and_nothing_else() -> None:
    """Order, identity and environment do not enter; every byte and name does."""
    tensor = TensorBytes("a", "uint8", (3,), memoryview(b"abc"))
    other = TensorBytes("b", "uint8", (0,), memoryview(b""))
    base = Snapshot(1, (tensor, other), {"x": 0.1}, {"seed": 1}, {"threads": 1})
    same = Snapshot(1, (other, tensor), {"x": 0.1}, {"seed": 2}, {})
    assert base.digest() == same.digest()
    changed = [
        dataclasses.replace(base, iteration=2),
        dataclasses.replace(base, values={"x": 0.2}),
        dataclasses.replace(base, tensors=(tensor,)),
        dataclasses.replace(base, tensors=(dataclasses.replace(tensor, name="c"), other)),
        dataclasses.replace(base, tensors=(dataclasses.replace(tensor, shape=(3, 1)), other)),
        dataclasses.replace(base, tensors=(dataclasses.replace(tensor, dtype="int8"), other)),
        dataclasses.replace(
            base, tensors=(dataclasses.replace(tensor, data=memoryview(b"abd")), other)
        ),
    ]
    digests = {base.digest(), *(snapshot.digest() for snapshot in changed)}
    assert len(digests) == len(changed) + 1


def test_a_tensor_that_does_not_fill_its_shape_is_refused() -> None:
    """Before anyone maps it."""
    with pytest.raises(ValueError, match="do not fill"):
        TensorBytes("a", "float32", (2,), memoryview(b"1234"))


def test_another_run_is_refused_with_what_differs() -> None:
    """All of it, in one sentence."""
    with pytest.raises(
        MismatchError,
        match="This is not the run in the region: cfg is aa but was bb; seed is 2 but was 1",
    ):
        require_same_run({"cfg": "aa", "seed": 2}, {"cfg": "bb", "seed": 1})


def test_another_network_is_refused_and_left_as_it_was() -> None:
    """The first tensor that differs is named."""
    snapshot = run()[2].snapshot()
    network, _, _ = run(text=CFG.replace("output=5", "output=4"))
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(MismatchError, match=r"float32\[5, 6\] there and float32\[4, 6\] here"):
        restore_model(network, snapshot)
    assert all(map(torch.equal, before, network.parameters()))


def test_a_changed_environment_is_told() -> None:
    """With what was and what is."""
    _, _, state = run()
    here = state.snapshot().environment
    assert not_bit_exact(here) is None
    assert not_bit_exact({**here, "threads": 99}) == f"threads was 99 and is {here['threads']}"
