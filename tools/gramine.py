"""Renders gramine/plinius.manifest.template, and signs it where Gramine's tools for SGX are.

    gramine.py JOB DATA REGION BROKER PIN [THREADS] [ENCLAVE_SIZE]

Writes build/gramine/. JOB is a folder with net.cfg, job.toml and owner.pub; DATA one with
train.sealed; REGION one for the region and the metrics. After signing it prints the rule of the
owner's policy that accepts this enclave.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "gramine" / "plinius.manifest.template"
BUILD = ROOT / "build" / "gramine"
DOCUMENTED = "see docs/tee.md"


def main(words: list[str]) -> None:
    """Render, sign, print; exits with a sentence if a tool is not there."""
    renderer = shutil.which("gramine-manifest")
    if renderer is None:
        sys.exit(
            "gramine: Gramine is not installed; install its package 'gramine' (Debian and Ubuntu: "
            f"packages.gramineproject.io), {DOCUMENTED}"
        )
    if not 5 <= len(words) <= 7 or not all(words[:5]):
        sys.exit(f"gramine: give JOB, DATA, REGION, BROKER and PIN, {DOCUMENTED}")
    values = variables(*words)
    BUILD.mkdir(parents=True, exist_ok=True)
    manifest = BUILD / "plinius.manifest"
    given = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run([renderer, *given, str(TEMPLATE), str(manifest)], check=True)
    print(f"{manifest.relative_to(ROOT)} is for gramine-direct, which protects nothing")
    signer = shutil.which("gramine-sgx-sign")
    if signer is None:
        print(f"gramine: gramine-sgx-sign is not installed, so nothing is signed, {DOCUMENTED}")
        return
    signed = ["--manifest", str(manifest), "--output", f"{manifest}.sgx"]
    subprocess.run([signer, *signed], check=True)
    shown = subprocess.run(
        ["gramine-sgx-sigstruct-view", "--output-format", "json", str(BUILD / "plinius.sig")],  # noqa: S607
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    print(rule(json.loads(shown.stdout)))


def variables(
    job: str,
    data: str,
    region: str,
    broker: str,
    pin: str,
    threads: str = "1",
    enclave_size: str = "8G",
) -> dict[str, str]:
    """What the template is rendered with; folders as absolute paths."""
    package = ROOT / "src"
    inside = str(package).startswith(sys.prefix)
    return {
        "python": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "source": "" if inside else str(package),
        "arch_libdir": "/lib/x86_64-linux-gnu",
        "job": str(Path(job).resolve()),
        "data": str(Path(data).resolve()),
        "region": str(Path(region).resolve()),
        "broker": broker,
        "broker_pin": pin,
        "threads": threads,
        "enclave_size": enclave_size,
    }


def rule(sigstruct: dict[str, object]) -> str:
    """The rule of a policy for an enclave, from what gramine-sgx-sigstruct-view says of it."""
    return (
        '\n[[rule]]\nname = "enclave"\nkind = "sgx"\ncollateral = "collateral.json"\n'
        f'mrenclave = ["{sigstruct["mr_enclave"]}"]'
    )


if __name__ == "__main__":
    main(sys.argv[1:])
