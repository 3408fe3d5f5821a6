"""A broker for tests: its policy, keys and folder; a trainer that attests; a served process."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.world import World, call
from plinius.data.sealed_dataset import SealedDataset
from plinius.jsonvalue import from_json
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.trust.broker import Broker, load_keys
from plinius.trust.messages import AnchorRequest, decode_answer
from plinius.trust.policy import load_policy
from plinius.trust.release import Release, ReleaseKey
from plinius.trust.signing import SigningKey
from plinius.trust.simulated import DevelopmentKey
from plinius.trust.trainer import Source

JOB = bytes(range(32))
SIGNER = DevelopmentKey(b"\5" * 32)


class Place:
    """A folder with policy, owner's key and development key, and a clock that can be set."""

    def __init__(self, folder: Path, more: str = "", datasets: str = "", job: bytes = JOB) -> None:
        self.folder, self.now, self.job = folder, 1_760_000_000.0, job
        folder.mkdir(exist_ok=True)
        self.owner_file = folder / "owner.key"
        if not self.owner_file.exists():
            OwnerKey.generate().save(self.owner_file)
            SIGNER.save(folder / "dev")
        self.owner = next(iter(load_keys(folder).values()))
        self.policy = folder / "policy.toml"
        self.policy.write_text(
            f'version = 1\n[[rule]]\nname = "sim"\nkind = "simulated"\n'
            f'signer = ["{SIGNER.public.hex()}"]\n[[job]]\ndigest = "{job.hex()}"\n'
            f'owner_key = "{self.owner.id.hex()}"\naccept = ["sim"]\n{more}\n{datasets}'
        )

    def broker(self) -> Broker:
        """A broker in this process, with the clock of this place."""
        keys = load_keys(self.folder)
        return Broker(load_policy(self.policy), keys, self.folder, lambda: self.now)

    def audit(self) -> list[dict[str, Any]]:
        """The entries of the audit log."""
        lines = (self.folder / "audit.jsonl").read_bytes().splitlines()
        return [from_json(line) for line in lines]


class TrainingPlace(Place):
    """A place whose policy names a job that was signed for the small world."""

    def __init__(self, folder: Path, world: World, more: str = "", *options: object) -> None:
        folder.mkdir()
        shutil.copy(world.key, folder / "owner.key")
        SIGNER.save(folder / "dev")
        SigningKey.generate().save(folder / "sign")
        data = ["--data", world.data, "--test", world.held_out, "--key", world.key]
        signing = ["--sign", folder / "sign", "-o", folder / "job"]
        allowed = ["--allow", "digest", "--allow", "accuracy", *options]
        made = call("job", "create", world.cfg, *data, *signing, *allowed, "--json").json
        named = ""
        for path in (world.data, world.held_out):
            header = SealedDataset.from_file(path, load_key(world.key)).header
            named += f'[[job.dataset]]\nid = "{header.id.hex()}"\nsalt = "{header.salt.hex()}"\n'
        super().__init__(folder, more, named, bytes.fromhex(made["digest"]))
        self.source = Source(folder / "dev")
        self.options = ["--job", folder / "job", "--owner", folder / "sign.pub"]

    def keys(self, url: str) -> list[object]:
        """The options that get the keys of its job from a broker, by simulated evidence."""
        return ["--broker", url, *self.options, "--simulated", self.folder / "dev"]


class Trainer:
    """A trainer without a transport: it attests to a broker and asks its anchor."""

    def __init__(self, broker: Broker, job: bytes = JOB, signer: DevelopmentKey = SIGNER) -> None:
        self.broker, self.key = broker, ReleaseKey()
        self.nonce = bytes.fromhex(str(broker.challenge()["nonce"]))
        self.envelope = signer.evidence(self.key.public, self.nonce, job).encode()

    def attest(self) -> "Trainer":
        """Get the keys."""
        answer = self.broker.release(self.envelope, "test")
        self.lease, self.sealed = str(answer["lease"]), bytes.fromhex(str(answer["sealed"]))
        self.release: Release = self.key.open(self.sealed, bytes.fromhex(self.lease), self.envelope)
        return self

    def ask(
        self, ask: str, old: tuple[int, str] | None = None, new: tuple[int, str] | None = None
    ) -> tuple[tuple[int, str] | None, str | None]:
        """The newest commit, and the refusal, that the anchor answers."""
        request = AnchorRequest(self.lease, ask, "00" * 16, old, new, os.urandom(16).hex())
        body, tag = request.encode(self.release.lease_key)
        return decode_answer(self.release.lease_key, tag, self.broker.anchor(body, "test"))


def commit(number: int, branch: int = 0) -> tuple[int, str]:
    """A commit's number and some digest."""
    return number, f"{number:032x}{branch:032x}"


@contextmanager
def served(place: Place, *options: str) -> Iterator[tuple[str, int]]:
    """`plinius broker` in a process of its own: its URL and process id; stopped at the end."""
    command = [sys.executable, "-m", "plinius", "broker", "--policy", str(place.policy)]
    command += ["--keys", str(place.folder), "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"listens on (\S+)", line):
                    yield found[1], process.pid
                    break
            else:
                raise AssertionError(said)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert code in (0, -signal.SIGKILL)
