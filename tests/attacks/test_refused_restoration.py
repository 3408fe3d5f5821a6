"""After a refused mirror_in everything holds what it held before, or zeros; never other bytes."""

import collections
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.mutations import first_seed
from plinius.errors import FormatError, MismatchError, PliniusError, RegionError, SealError
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.slots.chunks import cut
from unit.mirroring import KEY

State = dict[str, Any]
REFUSALS = (SealError, RegionError, FormatError)


class Net(nn.Module):
    """Parameters in channels_last, tied ones, frozen ones, and a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.head.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.register_buffer("hidden", torch.ones(7), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Eight numbers for each image."""
        y: torch.Tensor = self.tied(self.frozen(self.head(self.norm(self.conv(x)).mean((2, 3)))))
        return y


def objects(seed: int, log: int) -> State:
    """A run's objects of every kind of memory, with bytes and values that the seed decides."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 * seed)
    for _ in range(2):  # its moments, and gradients that are still there
        optimizer.zero_grad()
        model(torch.randn(4, 3, 5, 5)).square().sum().backward()
        optimizer.step()
    shared = torch.randn(900)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, seed + 1),
        "large": torch.randn(700_000),
        "strided": torch.randn(300, 4)[:, ::2],
        "transposed": torch.randn(5, 70).t(),
        "first": shared[:600],
        "second": shared[300:].view(20, 30),
        "expanded": torch.randn(3).expand(4, 3),
        "leaf": torch.randn(40, requires_grad=True),
        "half": torch.randn(33).bfloat16(),
        "flags": torch.randn(33) > 0,
        "complex": torch.randn(9, dtype=torch.complex64),
        "array": np.random.rand(50, 3),
        "columns": np.asfortranarray(np.random.rand(50, 3)),
        "every other": np.random.rand(80)[::2],
        "number": seed,
        "text": f"run {seed}",
        "log": [f"iteration {number} of {seed}" for number in range(log)],
        "nested": {"deque": collections.deque([seed, (seed, 2.5)]), "set": {seed, 7}, "raw": b"a"},
        "generator": torch.Generator().manual_seed(seed),
    }


def memories(state: State) -> dict[str, bytes]:
    """The whole memory behind every tensor and array, gaps between items included."""
    model, optimizer = state["model"], state["optimizer"]
    tensors = {f"state {name}": it for name, it in state.items() if isinstance(it, torch.Tensor)}
    tensors |= {f"model {name}": it for name, it in model.named_parameters()}
    tensors |= {f"model {name}": it for name, it in model.named_buffers()}
    tensors |= {f"grad {n}": it.grad for n, it in model.named_parameters() if it.grad is not None}
    for number, moments in enumerate(optimizer.state.values()):
        tensors |= {f"moment {number} {name}": it for name, it in moments.items()}
    found = {
        name: bytes(torch.empty(0, dtype=torch.uint8).set_(it.untyped_storage()).numpy())
        for name, it in tensors.items()
    }
    for name, it in state.items():
        if isinstance(it, np.ndarray):
            found[name] = (it if it.base is None else it.base).tobytes("A")
    return found


def others(state: State) -> str:
    """Every value that is no tensor, and which objects these are."""
    groups = [
        {name: it for name, it in group.items() if name != "params"}
        for group in state["optimizer"].param_groups
    ]
    plain = {
        name: it for name, it in state.items() if not isinstance(it, np.ndarray | torch.Tensor)
    }
    for name in ("model", "optimizer", "scheduler", "generator"):
        del plain[name]
    same = {name: id(it) for name, it in state.items()}
    modes = [module.training for module in state["model"].modules()]
    random_state = [random.getstate(), repr(np.random.get_state(legacy=False))]
    torch_state = [torch.get_rng_state().tolist(), state["generator"].get_state().tolist()]
    schedule = state["scheduler"].state_dict()
    return repr([groups, plain, same, modes, random_state, torch_state, schedule])


def changed(state: State, before: dict[str, bytes]) -> list[str]:
    """The names of what holds a byte that is neither as before nor zero, or that is new."""
    now = memories(state)
    names = [*(now.keys() ^ before.keys())]
    for name in now.keys() & before.keys():
        found, held = (np.frombuffer(it[name], np.uint8) for it in (now, before))
        if found.shape != held.shape or ((found != held) & (found != 0)).any():
            names.append(name)
    return sorted(names)


def require_untouched(state: State, before: dict[str, bytes], kept: str, what: str) -> None:
    """Every byte is as before, or zero; every other value is as before."""
    assert others(state) == kept, what
    assert changed(state, before) == [], what


def flips(path: Path, log: int, rng: random.Random) -> list[tuple[str, int]]:
    """Where to flip a bit: in the header, and in each part and each chunk of the newest slot."""
    with Region.open(path, writable=False) as region:
        slots = Slots.open(region, KEY)
        assert slots is not None
        manifest, layout = slots.newest(), slots._pinned.layout
        assert manifest is not None
        slots.close()
    assert (manifest.values_tensor is not None) == (log > 1000)
    slot, at = layout.slot(manifest.commit), layout.manifest(manifest.commit)
    found = [("header", layout.offset + byte) for byte in (0, 8, 16, 32, 40, 48, 61, 100)]
    found += [("head of the slot", slot + byte) for byte in (0, 5, 8, 64, 96, 104)]
    length = int.from_bytes(path.read_bytes()[slot + 96 : slot + 104], "little")
    found += [("manifest", at + rng.randrange(length)) for _ in range(9)]
    for chunk in cut(manifest.sizes):
        begin = layout.chunks(manifest.commit) + chunk.offset
        names = {manifest.tensors[it.tensor].name for it in chunk.segments
                 if it.tensor < len(manifest.tensors)}  # fmt: skip
        for byte in (0, rng.randrange(chunk.sealed_bytes), chunk.sealed_bytes - 1):
            found.append((f"chunk {chunk.number} of {sorted(names)}", begin + byte))
    return found


def commit_twice(path: Path, log: int) -> None:
    state = objects(1, log)
    with Mirror.open(path, KEY, state) as mirror:
        for iteration in (1, 2):
            state["number"] = iteration
            state["large"] += 1
            mirror.mirror_out(iteration)


@pytest.mark.parametrize(
    ("log", "how"),
    [
        (3, {}),
        (3, {"threads": 2}),
        (3, {"overlap": True, "only_steps_write": True}),
        (5000, {"trust_versions": True, "threads": 2}),
    ],
    ids=["plain", "threads", "overlap", "large values"],
)
def test_a_refused_commit_leaves_nothing_of_its_bytes(
    log: int, how: dict[str, Any], place: Path, request: pytest.FixtureRequest
) -> None:
    """Wherever a bit is flipped: in objects built anew, strided, shared and with gradients."""
    path, rng = place / "run.region", random.Random(first_seed())
    commit_twice(path, log)
    whole = path.read_bytes()
    places = flips(path, log, rng)
    assert len(places) > 30
    for what, at in places * (5 if request.config.getoption("--soak") else 1):
        raw = bytearray(whole)
        raw[at] ^= 1 << rng.randrange(8)
        path.unlink()
        path.write_bytes(raw)
        state = objects(2, log)
        before, kept = memories(state), others(state)
        try:
            with Mirror.open(path, KEY, state, **how) as mirror, pytest.raises(REFUSALS):
                mirror.mirror_in()
        except PliniusError:
            assert what in ("header", "head of the slot")
        require_untouched(state, before, kept, what)
    assert memories(objects(1, log)) != before  # the commit would have changed it


def test_a_living_run_whose_commits_are_altered_keeps_its_state(place: Path) -> None:
    """Also when it asks for the commit before, and that one is altered too."""
    path, rng = place / "run.region", random.Random(first_seed())
    commit_twice(path, 3)
    places = [(what, at) for what, at in flips(path, 3, rng) if what.startswith("chunk")]
    state = objects(1, 3)
    with Mirror.open(path, KEY, state) as mirror:
        mirror.mirror_in()
        slot_bytes = mirror._slots._pinned.layout.slot_bytes
        state["large"] -= 7  # what is live is not what is mirrored
        state["model"].head.weight.data += 1
        state["number"] = 99
        for what, at in places:
            before, kept = memories(state), others(state)
            with path.open("r+b", buffering=0) as file:  # commit 2 is in slot 0, commit 1 in slot 1
                for byte in (at, at + slot_bytes):
                    file.seek(byte)
                    old = file.read(1)[0]
                    file.seek(byte)
                    file.write(bytes([old ^ 1]))
            with pytest.raises(SealError):
                mirror.mirror_in(accept_previous=True)
            require_untouched(state, before, kept, what)
            with path.open("r+b", buffering=0) as file:
                for byte in (at, at + slot_bytes):
                    file.seek(byte)
                    old = file.read(1)[0]
                    file.seek(byte)
                    file.write(bytes([old ^ 1]))
        assert mirror.mirror_in() == 2  # it was the altered bytes that were refused
        assert state["number"] == 2


class Stubborn:
    """An object that does not take on its state."""

    def __init__(self, seed: int) -> None:
        self.tensor = torch.full((50,), float(seed))

    def state_dict(self) -> State:
        """A copy of its tensor, so that it must be loaded."""
        return {"tensor": self.tensor.clone()}

    def load_state_dict(self, _: State) -> None:
        """Raises."""
        raise RuntimeError("no")


def test_a_state_that_an_object_does_not_load_leaves_zeros(place: Path) -> None:
    """Neither half of the stored state, nor all of it without that object."""
    make: Callable[[int], State] = lambda seed: objects(seed, 3) | {"stubborn": Stubborn(seed)}  # noqa: E731
    path = place / "run.region"
    with Mirror.open(path, KEY, make(1)) as mirror:
        mirror.mirror_out(1)
    state = make(2)
    before = memories(state)
    with (
        Mirror.open(path, KEY, state) as mirror,
        pytest.raises(MismatchError, match="stubborn"),
    ):
        mirror.mirror_in()
    assert changed(state, before) == []
    assert not state["large"].any()
