"""The run state: the live objects of a run and their snapshots.

Everything that decides the next step is here: parameters, buffers, momentum, the random number
generator, the iteration (which fixes the learning rate and the records drawn) and the average
loss. Momentum exists from the start as zeros, which gives the same first step as none.
"""

import hashlib
import os
import platform
from pathlib import Path
from typing import cast

import torch
from torch import nn

from plinius.darknet.network import Network
from plinius.errors import MismatchError
from plinius.snapshot import ITEM_BYTES, Json, Snapshot, TensorBytes

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_TUNING = ("ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_", "GOMP_", "ATEN_", "TORCH_", "OPENBLAS_")
_INEXACT = "inexact_since"
_RNG = "rng"
_MODEL = "model."
_MOMENTUM = "momentum."


class RunState:
    """The state of one run: takes snapshots of it and restores them in place."""

    def __init__(
        self, network: Network, optimizer: torch.optim.SGD, identity: dict[str, Json]
    ) -> None:
        self.iteration = 0
        self.average_loss: float | None = None
        self.identity = identity
        self._environment = environment()
        self.inexact_since: int | None = None
        """The iteration from which the run is not bit-identical to one that never stopped."""
        self._generator = network.generator
        self._tensors = _model_tensors(network)
        for name, parameter in network.named_parameters():
            momentum = torch.zeros_like(parameter)
            optimizer.state[parameter]["momentum_buffer"] = momentum
            self._tensors[_MOMENTUM + name] = momentum

    def update_average(self, loss: float) -> None:
        """Darknet's running loss: 0.9 of the average and 0.1 of the new one."""
        average = loss if self.average_loss is None else self.average_loss
        self.average_loss = 0.9 * average + 0.1 * loss

    def snapshot(self) -> Snapshot:
        """The state now. Tensors are shared with the run: use it before the next step."""
        tensors = [_to_bytes(name, tensor) for name, tensor in self._tensors.items()]
        tensors.append(_to_bytes(_RNG, self._generator.get_state()))
        values: dict[str, Json] = {"average_loss": self.average_loss}
        where = {**self._environment, _INEXACT: self.inexact_since}
        return Snapshot(self.iteration, tuple(tensors), values, self.identity, where)

    def restore(self, snapshot: Snapshot) -> str | None:
        """Put the run where the snapshot was taken; returns why going on is not bit-identical.

        Raises MismatchError, changing nothing.
        """
        require_same_run(self.identity, snapshot.identity)
        stored = {tensor.name: tensor for tensor in snapshot.tensors}
        rng = stored.pop(_RNG)
        _require_layout(self._tensors, stored)
        _copy(self._tensors, stored)
        self._generator.set_state(_to_tensor(rng))
        self.iteration = snapshot.iteration
        self.average_loss = cast(float | None, snapshot.values["average_loss"])
        reason = not_bit_exact(snapshot.environment)
        self.inexact_since = cast(int | None, snapshot.environment[_INEXACT])
        if self.inexact_since is None and reason:
            self.inexact_since = self.iteration
        return reason


def restore_model(network: nn.Module, snapshot: Snapshot) -> None:
    """Put only the parameters and buffers of a snapshot into a network.

    Raises MismatchError, changing nothing, if their names, shapes or dtypes differ.
    """
    tensors = _model_tensors(network)
    stored = {t.name: t for t in snapshot.tensors if t.name.startswith(_MODEL)}
    _require_layout(tensors, stored)
    _copy(tensors, stored)


def require_same_run(mine: dict[str, Json], stored: dict[str, Json]) -> None:
    """Raise MismatchError, with what differs, unless both describe the same run."""
    differing = [
        f"{name} is {_show(mine.get(name))} but was {_show(stored.get(name))}"
        for name in sorted(mine.keys() | stored.keys())
        if mine.get(name) != stored.get(name)
    ]
    if differing:
        raise MismatchError(
            f"This is not the run in the region: {'; '.join(differing)}",
            "Give what that run began with, or name another region (--region)",
        )


def environment() -> dict[str, Json]:
    """What must be equal for a resume to be bit-identical."""
    tuning = {n: v for n, v in os.environ.items() if n.startswith(_TUNING)}
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "model": _cpu_model(),
        "tuning": " ".join(f"{name}={tuning[name]}" for name in sorted(tuning)),
    }


def not_bit_exact(stored: dict[str, Json]) -> str | None:
    """Why going on from this environment is not bit-identical here, or None if it is."""
    here = environment()
    differing = [
        f"{name} was {_show(stored.get(name))} and is {_show(here[name])}"
        for name in here
        if stored.get(name) != here[name]
    ]
    return "; ".join(differing) or None


def _cpu_model() -> str:
    """The processor and what it can do: kernels are chosen by more than torch's one word for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.machine()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in told.items()}
    flags = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return f"{facts.get('model name', platform.machine())} {flags}"


def _model_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    named = [*network.named_parameters(), *network.named_buffers()]
    return {_MODEL + name: tensor.detach() for name, tensor in named}


def _require_layout(tensors: dict[str, torch.Tensor], stored: dict[str, TensorBytes]) -> None:
    mine = {name: (_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    theirs = {name: (t.dtype, t.shape) for name, t in stored.items()}
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise MismatchError(
                f"The state in the region does not fit this network: {name} is "
                f"{_show_layout(theirs.get(name))} there and {_show_layout(mine.get(name))} here",
                "Give the cfg that run began with, or name another region (--region)",
            )


def _copy(tensors: dict[str, torch.Tensor], stored: dict[str, TensorBytes]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(_to_tensor(stored[name]))


def _to_bytes(name: str, tensor: torch.Tensor) -> TensorBytes:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return TensorBytes(name, _NAMES[tensor.dtype], tuple(tensor.shape), flat.numpy().data)


def _to_tensor(stored: TensorBytes) -> torch.Tensor:
    if stored.data.nbytes == 0:
        return torch.empty(stored.shape, dtype=_DTYPES[stored.dtype])
    return torch.frombuffer(stored.data, dtype=_DTYPES[stored.dtype]).reshape(stored.shape)


def _show(value: Json) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


def _show_layout(layout: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{layout[0]}{list(layout[1])}" if layout else "missing"
