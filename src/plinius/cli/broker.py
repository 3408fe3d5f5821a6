"""`broker`: releases keys to attested trainers; `revoke`: ends a lease."""

import ipaddress
from pathlib import Path

import click

from plinius.cli.console import answer, say
from plinius.cli.shared_options import PATH, json_option


@click.command()
@click.option("--policy", "policy_path", type=PATH, required=True, help="The owner's policy.")
@click.option(
    "--keys", "keys_path", type=PATH, required=True, help="The folder of the owners' keys (*.key)."
)
@click.option(
    "--listen", "address", required=True, metavar="HOST:PORT", help="Port 0 takes a free one."
)
@click.option("--state", type=PATH, help="The folder of ledger and audit log; default: --keys.")
@click.option("--tls-certificate", type=PATH, help="The certificate (PEM) to serve TLS with.")
@click.option("--tls-key", type=PATH, help="Its private key (PEM).")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=100.0,
    show_default=True,
    help="Requests that a client may make each second; ten times as many at once.",
)
def broker(
    policy_path: Path,
    keys_path: Path,
    address: str,
    state: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    rate: float,
) -> None:
    """Release keys to trainers that the policy accepts, and anchor their runs. Stop with Ctrl-C."""
    host, port = _address(address)
    if (tls_certificate is None) != (tls_key is None):
        raise click.UsageError("--tls-certificate and --tls-key belong together")
    if tls_certificate is None and not _is_local(host):
        raise click.UsageError("an address that others can reach needs --tls-certificate")
    from plinius.errors import NotInstalledError

    try:
        from plinius.trust.service import Rates, listen, make_app, serve
    except ImportError:
        raise NotInstalledError(
            "The broker needs starlette and uvicorn", "Install plinius[trust]"
        ) from None
    from plinius.trust.broker import Broker, load_keys
    from plinius.trust.policy import load_policy

    policy = load_policy(policy_path)
    made = Broker(policy, load_keys(keys_path), state or keys_path)
    for job in policy.jobs.values():
        if any(rule.kind == "simulated" for rule in job.rules):
            say(f"warning: job {job.digest.hex()} accepts SIMULATED evidence, which proves nothing")
    try:
        at = listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if tls_certificate else "http"
        say(f"The broker listens on {scheme}://{shown}:{at.getsockname()[1]}")
        serve(make_app(made, Rates(rate, 10 * rate)), at, tls_certificate, tls_key)
    finally:
        made.close()


@click.command()
@click.argument("lease")
@click.option("--state", type=PATH, required=True, help="The broker's folder of its ledger.")
@json_option
def revoke(lease: str, state: Path, as_json: bool) -> None:
    """Revoke a lease (its id is in the audit log): its trainer stops at its next anchor."""
    from plinius.trust import ledger

    ledger.revoke(state, lease)
    answer({"revoked": lease}, as_json)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError("--listen is HOST:PORT")
    return host, int(port)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
