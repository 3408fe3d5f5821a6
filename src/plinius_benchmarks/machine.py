"""The machine: what figures depend on, and so belongs beside every one of them."""

import os
import platform
from pathlib import Path

import numpy as np

Machine = dict[str, str | int | float]


def describe_machine() -> Machine:
    """Processor, cores, system and versions; the load shows whether the machine was shared."""
    return {
        "cpu": _cpu(),
        "cpus": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def describe_with_torch() -> Machine:
    """The same, with torch's version and what it uses of the processor."""
    import torch

    return describe_machine() | {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def in_words(machine: Machine) -> str:
    """For a title."""
    torch = f", torch {machine['torch']}" if "torch" in machine else ""
    return f"{machine['cpu']}, {machine['cpus']} CPUs, Python {machine['python']}{torch}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
