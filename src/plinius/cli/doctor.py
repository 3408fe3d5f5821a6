"""The doctor: what is protected on this machine, and what is not. It never flatters."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from plinius.errors import PliniusError
from plinius.pm.cacheline import pwb_name
from plinius.pm.region import Region

_TEE_DEVICES = {
    "/dev/sgx_enclave": "SGX",
    "/dev/tdx_guest": "TDX",
    "/dev/sev-guest": "SEV-SNP",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `protected` is True, False, or None where neither word fits."""

    topic: str
    protected: bool | None
    found: str


def examine(region: Path | None = None) -> list[Finding]:
    """Everything a user should know before trusting this machine with data."""
    findings = [
        Finding("data at rest", True, "sealed with AES-256-GCM; each record is bound to its place"),
        Finding("run state at rest", True, "sealed with a fresh key for every commit"),
        _tee(),
        Finding(
            "key release", False, "unattested: the trainer reads the key from a file on this host"
        ),
        Finding(
            "rollback", False, "an older copy of a whole region is accepted: nothing remembers"
        ),
        _core_dumps(),
        _swap(),
        _write_back(),
        Finding(
            "numbers",
            None,
            f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; resume is "
            "bit-identical under the same torch, processor, thread count and tuning variables",
        ),
    ]
    if region is not None:
        with Region.open(region, writable=False) as opened:
            opened.consistency_check()
            durable = opened.granularity.name != "PROCESS"
            found = f"{opened.granularity.name}: survives {opened.granularity.survives}"
            findings.append(Finding(f"region {region}", durable, found))
    return findings


def _tee() -> Finding:
    present = [name for device, name in _TEE_DEVICES.items() if Path(device).exists()]
    here = f"a {', '.join(present)} device is here, but this release does not use it"
    return Finding(
        "memory while training",
        False,
        "simulation, not a TEE: whoever owns this host can read it"
        + (f" ({here})" if present else ""),
    )


def _core_dumps() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    pattern = Path("/proc/sys/kernel/core_pattern")
    piped = pattern.exists() and pattern.read_text(encoding="utf-8").startswith("|")
    if soft == 0 and not piped:  # a program that cores are piped to gets them whatever the limit
        return Finding("core dumps", True, "off for this process")
    return Finding("core dumps", False, "on: a crash could write keys to disk (ulimit -c 0)")


def _swap() -> Finding:
    try:
        lines = Path("/proc/swaps").read_text(encoding="ascii").splitlines()
    except OSError:
        return Finding("swap", None, "cannot be seen here")
    if len(lines) <= 1:
        return Finding("swap", True, "none, so keys in memory stay there")
    return Finding("swap", False, "on: keys in memory could be written to disk (swapoff -a)")


def _write_back() -> Finding:
    chosen = " (PLINIUS_PWB)" if "PLINIUS_PWB" in os.environ else ""
    try:
        return Finding("persistent memory", None, f"write-back by {pwb_name()}{chosen}")
    except PliniusError as refusal:
        return Finding("persistent memory", None, refusal.what)
