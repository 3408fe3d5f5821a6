"""Which keys a command uses, and for which job: the options, and the one value they become.

`@owner_access` is for commands that read a run with the owner's key; `@trainer_access` for those
that compute, with the owner's key or with keys from a broker. Both give the command `access`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plinius.cli.attest import Digest, simulated_option, tpm_option
from plinius.cli.console import is_own_process, say
from plinius.cli.shared_options import PATH, key_option
from plinius.errors import KeyFileError
from plinius.history.live_region import read_region
from plinius.history.reading import snapshot_of
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.slots import Slots
from plinius.snapshot import Snapshot
from plinius.trust.harden import confine, harden
from plinius.trust.job_file import SignedJob, load_job
from plinius.trust.landlock import Reach
from plinius.trust.measure import Measure
from plinius.trust.permit import Permit, require_job_of
from plinius.trust.seccomp import Sockets
from plinius.trust.signing import load_signer

if TYPE_CHECKING:
    from plinius.trust.client import Address
    from plinius.trust.tpm_anchor import TpmAnchor
    from plinius.trust.trainer import BrokerAnchor, Granted, Source

_F = TypeVar("_F", bound=Callable[..., Any])
Options = tuple[Callable[[Any], Any], ...]

JOB_OPTIONS: Options = (
    click.option("--job", "job_path", type=PATH, help="Do what this signed job allows."),
    click.option("--owner", "owner_path", type=PATH, help="The job's owner (.pub file)."),
)
_BROKER_OPTIONS: Options = (
    click.option(
        "--key",
        "key_path",
        type=PATH,
        help="The owner's key, if no broker gives the keys: a file, -, fd:N, or env:NAME.",
    ),
    click.option("--broker", metavar="URL", help="Attest to this broker, which gives the keys."),
    click.option(
        "--broker-pin", "pin", type=Digest(), help="SHA-256 of the broker's public key (DER)."
    ),
    click.option(
        "--broker-ca", "ca", type=PATH, help="The certificates that the broker's must be of."
    ),
    simulated_option,
    tpm_option,
    click.option(
        "--anchor",
        "anchor_kind",
        type=click.Choice(["tpm"]),
        help="With --key: this machine's TPM remembers the newest commit of the job's run.",
    ),
    click.option(
        "--accept-rollback",
        is_flag=True,
        help="Continue from a mirror that is not the newest, if the broker's policy allows it, or "
        "with --anchor tpm.",
    ),
    click.option(
        "--harden",
        "hardened",
        is_flag=True,
        help="Harden this process also with --key, as it always is with --broker.",
    ),
)


@dataclass(frozen=True)
class Keys:
    """What opens the run and its data; `granted` is what a broker gave, if one did."""

    run: OwnerKey
    data: OwnerKey
    granted: "Granted | None" = None
    tpm: "TpmAnchor | None" = None

    @property
    def anchor(self) -> "BrokerAnchor | TpmAnchor | None":
        """What remembers the newest commit."""
        return self.granted.anchor if self.granted else self.tpm


@dataclass(frozen=True)
class OwnerAccess:
    """The owner's key, and what a job allows, None without one."""

    key: OwnerKey
    permit: Permit | None

    def state(self, region: Path, commit: str) -> Snapshot:
        """A state of a run of this job, or of none without one. Raises JobError."""
        found = snapshot_of(region, self.key_of(region), commit)
        require_job_of(found, self.permit.digest if self.permit else None)
        return found

    def key_of(self, region: Path) -> OwnerKey:
        """The key that the run in a region is sealed with: the owner's, or that of the job."""
        if self.permit is None:
            return self.key
        from plinius.trust.release import run_key

        derived = run_key(self.key, bytes.fromhex(self.permit.file_digest))
        try:
            read_region(region, lambda opened: Slots.open(opened, derived))
        except KeyFileError:  # the run was made with the key file itself
            return self.key
        return derived


@dataclass(frozen=True)
class TrainerAccess:
    """Where keys come from, and what a job allows, None without one."""

    permit: Permit | None
    job_path: Path | None
    key_path: Path | None
    address: "Address | None"
    source: "Source"
    accept_rollback: bool
    hardened: bool
    anchor_kind: str | None = None

    def keys(self, reach: Reach) -> Keys:
        """The keys. This process is hardened where it is to be, and keeps only `reach`.

        Raises what reading a key file raises, AttestationError, StorageError.
        """
        wanted = self.hardened or self.address is not None
        here = wanted and is_own_process()
        in_force = harden() if here else []
        if self.address is None:
            assert self.key_path is not None
            key = load_key(self.key_path)
            keys, sockets = Keys(key, key, tpm=self._tpm(key)), Sockets()
        else:
            keys = self._released(in_force)
            sockets = Sockets(tcp=True, udp=self.address.is_a_name)
            reach = Reach(reach.read, reach.write, reach.make_in, (self.address.port,))
        if here:
            _report([*in_force, *confine(reach, sockets)])
        elif wanted:
            say("warning: NOT hardened: this command runs within another program")
        return keys

    def _tpm(self, key: OwnerKey) -> "TpmAnchor | None":
        if self.anchor_kind is None:
            return None
        from plinius.trust.tpm_anchor import TpmAnchor

        assert self.permit is not None
        terms, every = bytes.fromhex(self.permit.digest), self.permit.job.anchor.every
        anchor = TpmAnchor(key, terms, every, self.accept_rollback)
        click.get_current_context().call_on_close(anchor.close)
        counter, record = anchor.counter.handle, anchor.record.handle
        say(f"The TPM remembers the newest commit (NV indices {counter:#x} and {record:#x}).")
        return anchor

    def _released(self, in_force: list[Measure]) -> Keys:
        from plinius.trust.trainer import ask_for_keys

        assert self.address is not None
        assert self.permit is not None
        job = self.permit.file_digest
        granted = ask_for_keys(
            self.address, bytes.fromhex(job), self.source, accept_rollback=self.accept_rollback
        )
        if self.permit.job.anchor.kind == "broker":  # the job says how much may be lost, too
            granted.anchor.every = min(granted.anchor.every, self.permit.job.anchor.every)
        if granted.evidence_kind == "simulated":
            say("warning: the evidence was SIMULATED: the host can read keys, data and parameters")
        say(f"The broker gave the keys of job {job} for {granted.evidence_kind} evidence.")
        in_force.append(granted.key_memory)
        return Keys(granted.run_key, granted.dataset_keys, granted)


def owner_access(command: _F) -> _F:
    """--key, --job and --owner, as `access` (OwnerAccess)."""

    def read(key_path: Path, job_path: Path | None, owner_path: Path | None) -> OwnerAccess:
        signed = _signed(job_path, owner_path)
        # Who has the owner's key needs no release, so what was asked of the trainer is not asked.
        permit = Permit(signed, attested=True, anchor=signed.job.anchor.kind) if signed else None
        return OwnerAccess(load_key(key_path), permit)

    return _with_options((key_option, *JOB_OPTIONS), read, command)


def trainer_access(command: _F) -> _F:
    """The options of keys, broker, evidence and job, as `access` (TrainerAccess)."""

    def read(
        job_path: Path | None,
        owner_path: Path | None,
        key_path: Path | None,
        broker: str | None,
        pin: bytes | None,
        ca: Path | None,
        simulated: Path | None,
        tpm: str | None,
        anchor_kind: str | None,
        accept_rollback: bool,
        hardened: bool,
    ) -> TrainerAccess:
        from plinius.trust.client import Address
        from plinius.trust.trainer import Source

        if (key_path is None) == (broker is None):
            raise click.UsageError("give either --key or --broker")
        if broker is None and (pin or ca or simulated or tpm):
            raise click.UsageError(
                "--broker-pin, --broker-ca, --simulated and --tpm are options for --broker"
            )
        if anchor_kind and broker:
            raise click.UsageError("--anchor is for --key: a broker is an anchor itself")
        if anchor_kind and job_path is None:
            raise click.UsageError("--anchor needs --job and --owner: a job has one run")
        if accept_rollback and not (broker or anchor_kind):
            raise click.UsageError("--accept-rollback is for --broker and --anchor")
        if broker and job_path is None:
            raise click.UsageError("--broker needs --job and --owner")
        if simulated and tpm:
            raise click.UsageError("give either --simulated or --tpm")
        if pin and ca:
            raise click.UsageError("give either --broker-pin or --broker-ca")
        signed = _signed(job_path, owner_path)
        anchor = "broker" if broker else anchor_kind or "none"
        permit = Permit(signed, attested=broker is not None, anchor=anchor) if signed else None
        address = Address(broker, ca, pin) if broker else None
        return TrainerAccess(
            *(permit, job_path, key_path, address, Source(simulated, tpm)),
            *(accept_rollback, hardened, anchor_kind),
        )

    return _with_options((*_BROKER_OPTIONS, *JOB_OPTIONS), read, command)


def _with_options(options: Options, read: Callable[..., Any], command: _F) -> _F:
    """`command` with options that `read` turns into its parameter `access`."""
    names = read.__code__.co_varnames[: read.__code__.co_argcount]

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        access = read(**{name: given.pop(name) for name in names})
        return command(access=access, **given)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def _signed(job_path: Path | None, owner_path: Path | None) -> SignedJob | None:
    if job_path is None or owner_path is None:
        if job_path or owner_path:
            raise click.UsageError("--job and --owner go together")
        return None
    return load_job(job_path, load_signer(owner_path))


def _report(measures: list[Measure]) -> None:
    in_force = [one.name for one in measures if one.missing is None]
    say(f"Hardened: {', '.join(in_force)}.")
    for one in measures:
        if one.missing:
            say(f"warning: NOT in force: {one.name}: {one.missing}")
