"""The environment of a run: what must be equal for a resume to be bit-identical."""

import functools
import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from plinius.jsonvalue import Json
from plinius.state.devices import SUPPORTED, describe_device

_TUNING = (
    "ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_", "GOMP_", "ATEN_", "TORCH_", "OPENBLAS_", "CUBLAS_",
    "CUDNN_", "NVIDIA_TF32_",
)  # fmt: skip
_MATMUL = (
    "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)  # fmt: skip


def environment(devices: Sequence[str] = ()) -> dict[str, Json]:
    """What must be equal for a resume to be bit-identical, on these devices besides the CPU."""
    here: dict[str, Json] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "model": _cpu_model(),
        "tuning": _tuning(),
    }
    if devices:
        here["device settings"] = _device_settings()
    return {**here, **{device: describe_device(torch.device(device)) for device in devices}}


def not_bit_exact(stored: dict[str, Json]) -> str | None:
    """Why a run of this environment cannot continue bit-identically here; None if it can."""
    here = environment([name for name in stored if name.startswith(SUPPORTED)])
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


def _device_settings() -> str:
    """What makes kernels of GPUs compute other bits."""
    found: dict[str, object] = {
        "CUDA": torch.version.cuda,
        "HIP": torch.version.hip,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul": torch.get_float32_matmul_precision(),
    }
    if torch.cuda.is_available():
        found["cuDNN"] = torch.backends.cudnn.version()
        for name in ("enabled", "benchmark", "deterministic", "allow_tf32"):
            found[f"cuDNN {name}"] = getattr(torch.backends.cudnn, name)
        for name in _MATMUL:
            found[name] = getattr(torch.backends.cuda.matmul, name)
    return ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)


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
