"""What the owner of the demonstration has: keys, signed jobs, a policy, and a broker that runs.

The evidence is SIMULATED, by a development key: this machine need not have a TEE, and so the broker
keeps keys from nobody who is root here. With a TEE, only the rule in the policy differs.
"""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Run = Callable[..., str]
"""Shows a command, runs it, and returns what it printed."""

ANCHOR_EVERY = 10


class Owner:
    """An owner whose files lie in a folder; `run` runs the commands, `plinius` is their program."""

    def __init__(self, folder: Path, plinius: str, run: Run) -> None:
        folder.mkdir()
        self._folder, self._plinius, self._run = folder, plinius, run
        self.key, self.public = folder / "owner.key", folder / "sign.pub"
        self.policy, self.development = folder / "policy.toml", folder / "development"
        self._jobs: dict[str, str] = {}
        run(plinius, "keygen", "-o", self.key)
        run(plinius, "keygen", "--signing", "-o", folder / "sign")
        self.signer = self.make_development_key(self.development)

    def make_development_key(self, path: Path) -> str:
        """A key that signs simulated evidence; returns its public half."""
        made = self._run(self._plinius, "keygen", "--development", "-o", path, "--json")
        return str(json.loads(made)["signer"])

    def job(self, name: str) -> Path:
        """Where the job of that name is."""
        return self._folder / f"{name}.job"

    def options(self, name: str) -> list[str]:
        """The options that put a command under a job."""
        return ["--job", str(self.job(name)), "--owner", str(self.public)]

    def sign(self, name: str, cfg: Path, data: Path, *more: str | Path) -> None:
        """Sign a job: this network, on this data."""
        command = [self._plinius, "job", "create", cfg, "--data", data, "--key", self.key]
        command += ["--sign", self._folder / "sign", "-o", self.job(name)]
        command += ["--anchor", "broker", "--anchor-every", str(ANCHOR_EVERY), *more, "--json"]
        self._jobs[name] = str(json.loads(self._run(*command))["digest"])

    def write_policy(self, *data: Path) -> None:
        """Name who gets the keys of the signed jobs, and of which data: simulated evidence."""
        datasets = ""
        for path in data:
            about = json.loads(self._run(self._plinius, "inspect", path, "--json"))
            datasets += f'\n[[job.dataset]]\nid = "{about["id"]}"\nsalt = "{about["salt"]}"\n'
            key_id = about["key_id"]
        rule = f'[[rule]]\nname = "demo"\nkind = "simulated"\nsigner = ["{self.signer}"]\n'
        jobs = "".join(
            f'\n[[job]]\ndigest = "{digest}"\nowner_key = "{key_id}"\naccept = ["demo"]\n'
            f"anchor_every = {ANCHOR_EVERY}\n{datasets}"
            for digest in self._jobs.values()
        )
        self.policy.write_text(f"version = 1\n\n{rule}{jobs}")

    @contextmanager
    def broker(self) -> Iterator[str]:
        """The broker, as long as the `with` block lasts; gives its address."""
        command = [self._plinius, "broker", "--policy", str(self.policy)]
        command += ["--keys", str(self._folder), "--listen", "127.0.0.1:0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as broker:
            assert broker.stderr is not None
            try:
                said = ""
                for line in broker.stderr:
                    said += line
                    if found := re.search(r"listens on (\S+)", line):
                        yield found[1]
                        return
                raise RuntimeError(said)
            finally:
                broker.send_signal(signal.SIGTERM)
