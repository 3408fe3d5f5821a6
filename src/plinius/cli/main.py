"""`plinius`: the group of all commands. Each family is a file of its own beside this one."""

import click

from plinius import __version__
from plinius.cli.attest import attest
from plinius.cli.bench import bench
from plinius.cli.broker import broker, revoke
from plinius.cli.console import Refusals
from plinius.cli.data import inspect, open_file
from plinius.cli.describe import describe
from plinius.cli.doctor import doctor
from plinius.cli.generate import generate
from plinius.cli.job import job
from plinius.cli.keys import keygen
from plinius.cli.predict import predict
from plinius.cli.receipt import receipt
from plinius.cli.recipients import unwrap
from plinius.cli.region import region
from plinius.cli.rekey import rekey
from plinius.cli.results import digest, export, test
from plinius.cli.seal import seal
from plinius.cli.train import train
from plinius.cli.verify import verify

COMMANDS = (
    keygen, seal, inspect, open_file, describe, job, train, test, predict, generate, digest, export,
    region, verify, rekey, unwrap, attest, broker, revoke, receipt, bench, doctor,
)  # fmt: skip


@click.group(cls=Refusals, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="plinius")
def main() -> None:
    """Secure machine learning that survives: sealed data, sealed state, bit-identical resume."""


for command in COMMANDS:
    main.add_command(command)
