"""The host looks for keys: in files, logs, metrics, arguments, core files and other processes."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.world import PLINIUS, World
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key
from plinius.trust.release import DATASET_PURPOSES, run_secret
from trust.brokers import TrainingPlace, served
from trust.measures import require_measures_told


def secrets_of(place: TrainingPlace, world: World) -> dict[str, bytes]:
    """All that must not be found, by name."""
    owner = place.owner
    line = world.key.read_text().split("plinius-owner-key-1 ")[1]
    found = {"owner's key": bytes.fromhex(line.strip()), "run key": run_secret(owner, place.job)}
    for path in (world.data, world.held_out):
        salt = SealedDataset.from_file(path, load_key(world.key)).header.salt
        found |= {f"{one} of {path.name}": owner.object_key(one, salt) for one in DATASET_PURPOSES}
    for entry in place.audit():
        if entry["event"] == "released":
            lease = hashlib.sha256(bytes.fromhex(entry["lease"])).digest()
            found[f"key of lease {entry['lease']}"] = owner.object_key("lease", lease)
    return found


def found_in(data: bytes, secrets: dict[str, bytes]) -> list[str]:
    """The secrets that some bytes hold: raw, as hex digits, or in base64 at any of its places."""
    found = []
    for name, secret in secrets.items():
        forms = [secret, secret.hex().encode(), secret.hex().upper().encode()]
        for shift in range(3):
            text = base64.b64encode(bytes(shift) + secret)
            forms.append(text[4 if shift else 0 : 40])
        forms += [form.replace(b"+", b"-").replace(b"/", b"_") for form in forms[3:]]
        if any(form in data for form in forms):
            found.append(name)
    return found


def memory_of(pid: int) -> Iterator[bytes]:
    """The memory of a process that may be read, mapping by mapping."""
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if rights[0] == "r" and not line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                try:
                    memory.seek(start)
                    yield memory.read(end - start)
                except (OSError, OverflowError, ValueError):
                    continue


def wait_for(path: Path, lines: int) -> None:
    """Wait until a file of metrics has so many lines."""
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < until, "the trainer does not train"
        time.sleep(0.01)


def test_no_key_is_found_outside_trainer_and_broker(
    world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """While it trains, after it crashed, and with --soak at its end; the broker has them."""
    place = TrainingPlace(tmp_path / "broker", world)
    host = tmp_path / "host"
    host.mkdir()
    metrics, log = host / "metrics", host / "log"
    with served(place) as (url, broker):
        command = [PLINIUS, "train", world.cfg, "--data", world.data, "--region", host / "region"]
        command += ["--threads", 1, "--metrics", metrics, *place.keys(url)]
        # A shell is its parent, which allows core files, and waits.
        shell = ["/bin/sh", "-c", 'ulimit -c unlimited; "$@" & echo $!; wait $!', "sh"]
        with open(log, "wb") as said:
            parent = subprocess.Popen(
                [*shell, *map(str, command)], cwd=host, stdout=subprocess.PIPE, stderr=said
            )
        assert parent.stdout is not None
        trainer = int(parent.stdout.readline())
        try:
            wait_for(metrics, 2)
            os.kill(trainer, signal.SIGSTOP)
            secrets = secrets_of(place, world)
            assert len(secrets) == 7
            assert b"".join(memory_of(broker)).count(secrets["owner's key"]) > 0
            for data in memory_of(parent.pid):
                assert found_in(data, secrets) == []
            for name in ("environ", "cmdline", "comm"):
                assert found_in(Path(f"/proc/{trainer}/{name}").read_bytes(), secrets) == []
        finally:
            os.kill(trainer, signal.SIGSEGV)
            os.kill(trainer, signal.SIGCONT)
            parent.wait(60)
        assert list(host.glob("*core*")) == []
        require_measures_told(log.read_text())
        if request.config.getoption("--soak"):
            with open(log, "ab") as said:
                subprocess.run(list(map(str, command)), stderr=said, stdout=said, check=True)
            assert json.loads(metrics.read_bytes().splitlines()[-1])["iteration"] == 24
            assert re.search("Resumed at iteration [1-9]", log.read_text())
    secrets = secrets_of(place, world)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != place.owner_file:
            assert found_in(path.read_bytes(), secrets) == [], path
    assert found_in(place.owner_file.read_bytes(), secrets) == ["owner's key"]
