"""The environment of a run: what must be equal for a resume to be bit-identical."""

import functools
import hashlib
import os
import platform
from pathlib import Path

import torch

from plinius.jsonvalue import Json

_TUNING = ("ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_", "GOMP_", "ATEN_", "TORCH_", "OPENBLAS_")


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
        f"{name} was {show(stored.get(name))} and is {show(here[name])}"
        for name in here
        if stored.get(name) != here[name]
    ]
    return "; ".join(differing) or None


def show(value: Json) -> str:
    """A value for people: short."""
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


@functools.cache
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
