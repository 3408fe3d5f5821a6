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
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "model": _cpu_model(),
        "tuning": _tuning(),
    }


def not_bit_exact(stored: dict[str, Json]) -> str | None:
    """Why a run of this environment cannot continue bit-identically here; None if it can."""
    here = environment()
    differences = [
        f"{name} was {show(stored.get(name))} and is {show(here[name])}"
        for name in here
        if stored.get(name) != here[name]
    ]
    return "; ".join(differences) or None


def show(value: Json) -> str:
    """A value in at most 40 characters, for a message."""
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


@functools.cache
def _tuning() -> str:
    """The variables that tune torch and its libraries, which read them when they are loaded."""
    tuning = {n: v for n, v in os.environ.items() if n.startswith(_TUNING)}
    return " ".join(f"{name}={tuning[name]}" for name in sorted(tuning))


@functools.cache
def _cpu_model() -> str:
    """The processor and a hash of its flags: kernels depend on more than torch's name for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.machine()
    pairs = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs.items()}
    flags = hashlib.sha256(fields.get("flags", "").encode()).hexdigest()[:8]
    return f"{fields.get('model name', platform.machine())} {flags}"
