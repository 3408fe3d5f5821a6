"""`doctor`: what is protected on this machine, and what is not.

It never claims more protection than is really in force.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

import click

from plinius.cli.console import answer
from plinius.cli.shared_options import PATH, json_option
from plinius.errors import PliniusError
from plinius.history.live_region import read_region
from plinius.pm.cacheline import PWB_VARIABLE, pwb_name
from plinius.pm.region import Region
from plinius.trust import harden

_TEE_DEVICES = {
    "/dev/sgx_enclave": "SGX",
    "/dev/tdx_guest": "TDX",
    "/dev/sev-guest": "SEV-SNP",
}


@click.command()
@click.argument("region", type=PATH, required=False)
@json_option
def doctor(region: Path | None, as_json: bool) -> None:
    """Say what is protected here, and what is not."""
    findings = examine(region)
    if as_json:
        answer({f.topic: {"protected": f.protected, "found": f.found} for f in findings}, True)
        return
    words = {True: "protected", False: "NOT protected", None: "-"}
    for finding in findings:
        click.echo(f"{words[finding.protected]:<13}  {finding.topic}: {finding.found}")


@dataclass(frozen=True)
class Finding:
    """One result: `protected` is True, False, or None where the topic is no protection."""

    topic: str
    protected: bool | None
    found: str


def examine(region: Path | None = None) -> list[Finding]:
    """What a user should know before trusting this machine with data, and of one region if given.

    Raises what opening and checking the region raises.
    """
    import torch

    findings = [
        Finding("data at rest", True, "sealed with AES-256-GCM; each record is bound to its place"),
        Finding("run state at rest", True, "sealed with a fresh key for every commit"),
        _tee(),
        Finding(
            "key release",
            False,
            "unattested with --key: the trainer reads the key from a file on this host; with "
            "--broker it needs evidence, and simulated evidence proves nothing",
        ),
        Finding(
            "what is computed",
            False,
            "without a job, and with the key in a file, this host chooses it",
        ),
        Finding(
            "rollback",
            False,
            "without --broker or --anchor tpm, an older copy of a whole region is accepted as the "
            "newest",
        ),
        _core_dumps(),
        _hardening(),
        _swap(),
        _write_back(),
        Finding(
            "numbers",
            None,
            f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; resume is "
            "bit-identical under the same torch, processor, thread count and tuning variables",
        ),
        Finding(
            "GPUs",
            None,
            f"{torch.cuda.device_count()} seen; a mirror takes their tensors, but this release "
            "was never tried on one",
        ),
    ]
    if region is not None:
        findings.append(read_region(region, _region))
    return findings


def _region(opened: Region) -> Finding:
    opened.consistency_check()
    durable = opened.granularity.name != "PROCESS"
    found = f"{opened.granularity.name}: survives {opened.granularity.survives}"
    return Finding(f"region {opened.name}", durable, found)


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


def _hardening() -> Finding:
    measures = harden.examine()
    there = ", ".join(one.name for one in measures if one.missing is None)
    absent = "".join(f"; absent: {one.name}, {one.missing}" for one in measures if one.missing)
    return Finding(
        "hardening", None, f"on in train with --broker or --harden, off elsewhere: {there}{absent}"
    )


def _swap() -> Finding:
    try:
        lines = Path("/proc/swaps").read_text(encoding="ascii").splitlines()
    except OSError:
        return Finding("swap", None, "cannot be seen here")
    if len(lines) <= 1:
        return Finding("swap", True, "none, so keys in memory stay there")
    return Finding("swap", False, "on: keys in memory could be written to disk (swapoff -a)")


def _write_back() -> Finding:
    chosen = f" ({PWB_VARIABLE})" if PWB_VARIABLE in os.environ else ""
    try:
        return Finding("persistent memory", None, f"write-back by {pwb_name()}{chosen}")
    except PliniusError as refusal:
        return Finding("persistent memory", None, str(refusal))
