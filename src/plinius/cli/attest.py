"""`attest`: this machine's evidence; `attest verify`: what an owner's policy says of evidence."""

import time
from pathlib import Path

import click

from plinius.cli.console import answer, say
from plinius.cli.shared_options import PATH, json_option
from plinius.files import publish, read_file
from plinius.trust.evidence import MAX_EVIDENCE_BYTES, NO_JOB, NONCE_BYTES, decode_evidence


class Digest(click.ParamType[bytes]):
    """32 bytes in hex."""

    name = "hex"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        """The bytes of an option."""
        if isinstance(value, bytes):
            return value
        try:
            found = bytes.fromhex(str(value))
        except ValueError:
            found = b""
        if len(found) != 32:
            self.fail(f"{value} is not 32 bytes in hex", param, ctx)
        return found


simulated_option = click.option(
    "--simulated",
    type=PATH,
    metavar="KEYFILE",
    help="Simulate the evidence with this development key: it proves nothing.",
)
tpm_option = click.option(
    "--tpm", metavar="HANDLE", help="Have the TPM quote by its AK with this handle (0x81...)."
)


@click.group(invoke_without_command=True)
@click.option("-o", "--output", type=PATH, help="Write the evidence into this new file.")
@click.option("--nonce", type=Digest(), help="The challenge; default: a random one.")
@click.option("--job-digest", type=Digest(), help="SHA-256 of the job that it is for.")
@simulated_option
@tpm_option
@json_option
@click.pass_context
def attest(
    ctx: click.Context,
    output: Path | None,
    nonce: bytes | None,
    job_digest: bytes | None,
    simulated: Path | None,
    tpm: str | None,
    as_json: bool,
) -> None:
    """Print this machine's evidence, bound to a fresh key that is then forgotten."""
    if ctx.invoked_subcommand is not None:
        given = ctx.get_parameter_source
        for parameter in ctx.command.params:
            source = given(parameter.name or "")
            if source is not None and source.name == "COMMANDLINE":
                raise click.UsageError(f"{parameter.opts[-1]} is an option of attest alone")
        return
    from plinius.sealing import fresh
    from plinius.trust.release import ReleaseKey
    from plinius.trust.trainer import Source, make_evidence

    if simulated and tpm:
        raise click.UsageError("give either --simulated or --tpm")
    wanted = nonce or fresh(NONCE_BYTES)
    evidence = make_evidence(ReleaseKey(), wanted, job_digest or NO_JOB, Source(simulated, tpm))
    if evidence.kind == "simulated":
        say("This evidence is simulated: it proves nothing about this machine.")
    envelope = evidence.encode()
    if output is None and not as_json:
        click.echo(envelope.decode())
        return
    if output is not None:
        with publish(output) as file:
            file.write(envelope)
    answer(
        {
            "kind": evidence.kind,
            "job": evidence.job.hex(),
            "nonce": wanted.hex(),
            "report_data": evidence.report_data.hex(),
            "evidence": str(output) if output else envelope.decode(),
        },
        as_json,
    )


@attest.command()
@click.argument("evidence", type=PATH)
@click.option("--policy", type=PATH, required=True, help="The owner's policy.")
@click.option(
    "--at",
    type=click.IntRange(0, 2**40),
    help="Judge as of this time, in seconds since 1970; default: now.",
)
@click.option("--nonce", type=Digest(), help="The challenge that the evidence must answer.")
@json_option
def verify(
    evidence: Path, policy: Path, at: int | None, nonce: bytes | None, as_json: bool
) -> None:
    """Judge evidence by a policy, and say why. Exits with 1 if no rule accepts it."""
    from plinius.errors import AttestationError
    from plinius.trust.policy import load_policy
    from plinius.trust.verify import judge

    rules = load_policy(policy)
    found = decode_evidence(read_file(evidence, MAX_EVIDENCE_BYTES))
    job = rules.jobs.get(found.job)
    verdict = judge(
        found, job.rules if job else rules.rules, int(time.time()) if at is None else at
    )
    for rule, reasons in verdict.reasons.items():
        for reason in reasons:
            say(f"{rule}: {reason}")
    if nonce is not None and nonce != found.nonce:
        raise AttestationError("The evidence answers another challenge", "Ask for it again")
    if not verdict.accepted:
        raise AttestationError(
            f"No rule of {policy} accepts this {found.kind} evidence",
            "The reasons are above; ask its owner, or correct the policy",
        )
    answer(
        {
            **verdict.as_json(),
            "kind": found.kind,
            "job": found.job.hex() if any(found.job) else None,
            "job_in_policy": job is not None,
        },
        as_json,
    )
