"""The public mirror: any loop's state comes back bit for bit."""

import logging
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import plinius
from plinius.errors import MismatchError, PliniusError, SealError, StateError, StorageError
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import Slots, newest_snapshot
from unit.mirroring import KEY, Loop, adamw, ended

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "AdamW": adamw,
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.region"


def back(path: Path, value: Any, fresh: Any) -> Any:
    """A part mirrored out as `value` and mirrored into `fresh` by another mirror."""
    with Mirror.open(path, KEY, {"it": value}) as mirror:
        mirror.mirror_out(7)
    state = {"it": fresh}
    with Mirror.open(path, KEY, state) as mirror:
        assert mirror.mirror_in() == 7
        assert mirror.not_bit_exact is None
    return state["it"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loop_that_was_stopped_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    """Rebuilt after iterations 1, 2 and 5: parameters, moments, schedule, numbers, RNGs."""
    make = OPTIMIZERS[name]
    whole = ended(tmp_path / "a", 8, make=make)
    assert ended(tmp_path / "b", 8, (1, 2, 5), make=make) == whole


MODES: list[dict[str, Any]] = [
    {"overlap": True},
    {"overlap": True, "only_steps_write": True},
    {"trust_versions": True},
    {"threads": 2},
]


@pytest.mark.parametrize("how", MODES, ids=str)
def test_every_mode_gives_the_same_digests(how: dict[str, Any], tmp_path: Path) -> None:
    """And each resumes what another one mirrored."""
    whole = ended(tmp_path / "a", 8)
    assert ended(tmp_path / "b", 8, (3,), **how) == whole
    ended(tmp_path / "c", 4, **how)
    assert ended(tmp_path / "c", 8) == whole


def test_the_stored_digest_is_that_of_the_live_state(path: Path) -> None:
    """What a reader of the region computes is what the loop computes."""
    digest = ended(path, 3)
    assert newest_snapshot(path, KEY).digest() == digest


def test_a_new_mirror_holds_nothing(path: Path) -> None:
    """mirror_in says 0 and leaves the state alone."""
    loop = Loop()
    with plinius.Mirror.open(path, KEY, loop.state) as mirror:
        before = mirror.digest()
        assert mirror.mirror_in() == 0
        assert (mirror.digest(), mirror.commits, mirror.committed) == (before, 0, None)


def test_tied_tensors_are_kept_once_and_stay_tied(path: Path) -> None:
    """Two names, one memory."""
    loop = Loop()
    with Mirror.open(path, KEY, loop.state) as mirror:
        loop.train(mirror, 2)
    names = [tensor.name for tensor in newest_snapshot(path, KEY).tensors]
    assert "model/embedding.weight" in names
    assert "model/head.weight" not in names
    again = Loop()
    with Mirror.open(path, KEY, again.state) as mirror:
        mirror.mirror_in()
    assert again.model.head.weight is again.model.embedding.weight
    assert torch.equal(again.model.head.weight, loop.model.head.weight)


def test_an_optimizer_without_steps_takes_on_the_moments_of_one_with(path: Path) -> None:
    """State that grew after the region was made, restored into objects that have none yet."""
    loop = Loop()
    with Mirror.open(path, KEY, loop.state) as mirror:
        loop.train(mirror, 1)
    again = Loop()
    with Mirror.open(path, KEY, again.state) as mirror:
        mirror.mirror_in()
        mine, theirs = loop.optimizer.state_dict(), again.optimizer.state_dict()
    assert theirs["state"].keys() == mine["state"].keys() != set()
    for index, moments in mine["state"].items():
        for key, moment in moments.items():
            assert torch.equal(moment, theirs["state"][index][key])


def test_moments_are_not_cast_to_the_dtype_of_their_parameters(path: Path) -> None:
    """torch's own load_state_dict would make float32 moments of bfloat16 parameters bfloat16."""

    def made() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        return parameter, torch.optim.Adam([parameter])

    parameter, optimizer = made()
    optimizer.state[parameter] = {
        "step": torch.tensor(4.0),
        "exp_avg": torch.tensor([0.1, 0.2, 0.3]),
        "exp_avg_sq": torch.tensor([1e-9, 0.2, 0.3]),
    }
    fresh, found = made()
    back(path, optimizer, found)
    assert found.state[fresh]["exp_avg"].dtype is torch.float32
    assert torch.equal(found.state[fresh]["exp_avg_sq"], torch.tensor([1e-9, 0.2, 0.3]))


def test_numbers_strings_and_containers_come_back_as_they_were(path: Path) -> None:
    """By value and by type, in the dict that was given."""
    value = {
        "int": 2**70, "float": 0.1 + 0.2, "huge": 1e308, "inf": float("-inf"), "none": None,
        "yes": True, "text": "Plinius \u2202\n", "list": [1, [2.5, "x"], {}],
        "tuple": (1, (2, "y")),
        "bytes": b"\0\xff", "complex": 1 - 2j, "scalar": np.float32(0.1), 3: "int key",
        (1, "a"): "tuple key", "dtype": torch.bfloat16, "size": torch.Size([2, 3]),
    }  # fmt: skip
    found = back(path, value, {"list": [9], "gone": 1})
    assert found == value
    assert list(found) == list(value)
    assert [type(v) for v in found.values()][:-1] == [type(v) for v in value.values()][:-1]


def test_a_number_that_is_none_comes_back_too(path: Path) -> None:
    """NaN, which equals nothing."""
    assert np.isnan(back(path, float("nan"), 0.0))


def test_arrays_and_tensors_are_restored_in_place(path: Path) -> None:
    """Other references to them see it."""
    tensor, array = torch.zeros(3), np.zeros((2, 2), ">f8")
    value = {"tensor": torch.arange(3.0), "array": np.array([[1, 2], [3, 4]], ">f8")}
    back(path, value, {"tensor": tensor, "array": array})
    assert torch.equal(tensor, torch.arange(3.0))
    assert array.tolist() == [[1, 2], [3, 4]]


def test_generators_of_every_kind_continue_where_they_were(path: Path) -> None:
    """A user's own, beside those of the process."""

    def made(seed: int) -> list[Any]:
        return [
            torch.Generator().manual_seed(seed), np.random.default_rng(seed),
            np.random.RandomState(seed), random.Random(seed),
            np.random.Generator(np.random.MT19937(seed)),
        ]  # fmt: skip

    def drawn(generators: list[Any]) -> list[float]:
        mine, modern, legacy, plain, twister = generators
        return [
            float(torch.rand(1, generator=mine)), modern.random(), legacy.rand(),
            plain.gauss(0, 1), twister.random(),
        ]  # fmt: skip

    ours = made(5)
    drawn(ours)
    state = {"it": ours}
    with Mirror.open(path, KEY, state) as mirror:
        mirror.mirror_out(1)
        here = random.random(), float(np.random.rand()), float(torch.rand(1))
        wanted = drawn(ours)
        theirs = made(6)
    with Mirror.open(path, KEY, {"it": theirs}) as mirror:
        mirror.mirror_in()
    assert drawn(theirs) == wanted
    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == here


class Half:
    """An object that does not take all of its state back."""

    def __init__(self) -> None:
        self.kept, self.lost, self.weights = 1, 1, torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "lost": self.lost, "weights": self.weights.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept, self.weights = state["kept"], state["weights"] * self.lost


def test_what_an_object_does_not_restore_is_reported(path: Path) -> None:
    """A value makes the resume inexact; other tensors are refused."""
    value, fresh = Half(), Half()
    value.lost, value.kept = 5, 2
    with Mirror.open(path, KEY, {"it": value}) as mirror:
        mirror.mirror_out(1)
    with Mirror.open(path, KEY, {"it": fresh}) as mirror:
        mirror.mirror_in()
        assert mirror.not_bit_exact == "it/lost was 5 and is 1"
        assert mirror.inexact_since == 1
    value.weights = torch.ones(2)
    with Mirror.open(path, KEY, {"it": value}) as mirror:
        mirror.mirror_in()
        value.weights = torch.ones(2)
        mirror.mirror_out(2)
    with Mirror.open(path, KEY, {"it": fresh}) as mirror:
        fresh.lost = 3
        with pytest.raises(MismatchError, match="it/weights was restored with other items"):
            mirror.mirror_in()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "it is a object"),
        ({"a": [lambda: 1]}, "it/a/0 is a function"),
        (torch.zeros(2, 2).to_sparse_csr(), "it is a torch.sparse_csr tensor on cpu"),
        (torch.zeros(2, device="meta"), "it is a torch.strided tensor on meta"),
        (np.array([None]), "it is an array of Python objects"),
        ({"a/b~c": iter([])}, "it/a~1b~0c is a list_iterator"),
        ({"a": torch.ones(2, requires_grad=True) * 2}, "it/a is part of an autograd graph"),
        ({torch.ones(2): 1}, "it has a tensor as a key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_mirrored_is_refused_by_name(value: Any, what: str, path: Path) -> None:
    """Nothing is pickled; no region is left behind."""
    with pytest.raises(StateError, match=f"The state cannot be mirrored: {what}"):
        Mirror.open(path, KEY, {"it": value})


def test_endless_nesting_is_refused(path: Path) -> None:
    """A list that holds itself."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(StateError, match="contains itself"):
        Mirror.open(path, KEY, {"it": endless})


def test_no_pickle_is_made_or_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Python's nor torch's."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickled")

    for module, name in ((pickle, "dumps"), (pickle, "loads"), (torch, "save"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    ended(path, 3, (1,))


W = nn.Parameter(torch.zeros(2))
MISFITS: dict[str, tuple[Any, Any, str]] = {
    "shape": (nn.Linear(2, 3), nn.Linear(2, 4),
              r"it/weight is float32\[3, 2\] there and float32\[4, 2\] here"),
    "dtype": (nn.Linear(2, 3), nn.Linear(2, 3).double(),
              r"it/weight is float32\[3, 2\] there and float64\[3, 2\] here"),
    "missing": (nn.Linear(2, 3), nn.Linear(2, 3, bias=False),
                r"it/bias is float32\[3\] there and missing here"),
    "more": (nn.Linear(2, 3, bias=False), nn.Linear(2, 3),
             r"it/bias is missing there and float32\[3\] here"),
    "class": (torch.optim.Adam([W]), torch.optim.SGD([W]), r"it is a Adam there and a SGD here"),
    "kind": (nn.Linear(2, 3), 1.5, r"it is a module there and missing here"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changed(name: str, path: Path) -> None:
    """The first tensor that differs is named."""
    stored, mine, sentence = MISFITS[name]
    with Mirror.open(path, KEY, {"it": stored}) as mirror:
        mirror.mirror_out(1)
    with Mirror.open(path, KEY, {"it": mine}) as mirror:
        before = mirror.digest()
        with pytest.raises(MismatchError, match=sentence):
            mirror.mirror_in()
        assert mirror.digest() == before


def test_other_parts_are_refused(path: Path) -> None:
    """By the name that is missing, here or there."""
    with Mirror.open(path, KEY, {"a": 1, "b": 2}) as mirror:
        mirror.mirror_out(1)
    for parts, what in (
        ({"a": 1}, "b is missing in the state given"),
        ({"a": 1, "b": 2, "c": 3}, "c is missing in the state that was mirrored"),
    ):
        with Mirror.open(path, KEY, parts) as mirror, pytest.raises(MismatchError, match=what):
            mirror.mirror_in()


def test_another_run_is_refused_with_what_differs(path: Path) -> None:
    """All of it, in one sentence."""
    with Mirror.open(path, KEY, {}, identity={"recipe": "aa", "seed": 1}) as mirror:
        mirror.mirror_out(1)
    with Mirror.open(path, KEY, {}, identity={"recipe": "bb", "seed": 2}) as mirror:
        with pytest.raises(
            MismatchError,
            match="This is not the run in the region: recipe is bb but was aa; seed is 2 but was 1",
        ):
            mirror.mirror_in()


def test_a_mirror_with_commits_is_looked_at_before_it_is_written_to(path: Path) -> None:
    """Forgetting mirror_in does not write over a run."""
    ended(path, 2)
    loop = Loop()
    with Mirror.open(path, KEY, loop.state) as mirror:
        with pytest.raises(
            StateError, match="has commits that are not mirrored in. Call mirror_in before"
        ):
            mirror.mirror_out(1)


def test_a_commit_that_does_not_open_is_given_up_only_on_request(path: Path) -> None:
    """The one before is used when a person says so, and the run continues from it."""
    whole = ended(path, 6)
    ended(path.with_suffix(".other"), 4)
    with Region.open(path.with_suffix(".other")) as region:
        slots = Slots.open(region, KEY)
        assert slots is not None
        at = slots._pinned.layout.chunks(slots.commits)
        byte = region.medium.read(at, 1)[0]
        region.medium.store(at, bytes([byte ^ 1]))
    loop = Loop()
    with Mirror.open(path.with_suffix(".other"), KEY, loop.state) as mirror:
        with pytest.raises(SealError, match="Commit 4 in the mirror of"):
            mirror.mirror_in()
        assert mirror.mirror_in(accept_previous=True) == 3
        for iteration in (4, 5, 6):
            loop.step()
            mirror.mirror_out(iteration)
        assert mirror.digest(6) == whole


def test_what_the_disk_refuses_does_not_stop_training(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported, the last commit stays, and the next mirror_out tries again."""
    write = Slots.write
    for overlap in (False, True):
        loop = Loop()
        place = path.with_suffix(f".{overlap}")
        with Mirror.open(place, KEY, loop.state, overlap=overlap) as mirror:
            mirror.mirror_in()
            for iteration in range(1, 6):
                loop.step()

                def refuse(slots: Slots, *rest: Any, iteration: int = iteration) -> int:
                    if iteration in (3, 4):
                        raise StorageError("The disk refused a write: No space left", "Make room")
                    return write(slots, *rest)

                with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "plinius"):
                    patched.setattr(Slots, "write", refuse)
                    mirror.mirror_out(iteration)
                    mirror.wait()
                assert (mirror.failure is None) == (iteration not in (3, 4))
                assert mirror.committed == (2 if iteration in (3, 4) else iteration)
        assert "Iteration 3 is not mirrored yet: The disk refused a write" in caplog.text
        assert newest_snapshot(place, KEY).iteration == 5


def test_a_state_that_was_never_mirrored_is_reported_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close raises what the last mirror_out failed with, and releases the region."""
    loop = Loop()

    def refuse(*_: Any) -> int:
        raise StorageError("The disk refused a write: No space left", "Make room")

    with pytest.raises(PliniusError, match="The disk refused a write"):
        with Mirror.open(path, KEY, loop.state) as mirror:
            monkeypatch.setattr(Slots, "write", refuse)
            mirror.mirror_out(1)
    Region.open(path).close()
