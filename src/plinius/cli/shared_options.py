"""Options and arguments that several commands share."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
STOPPED = 75
"""Exit code of a command that a signal stopped with everything mirrored (EX_TEMPFAIL)."""

key_option = click.option(
    "--key",
    "key_path",
    type=PATH,
    required=True,
    help="The owner's key: a file, - (standard input), fd:N, or env:NAME.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
region_option = click.option(
    "--region", type=PATH, required=True, help="The persistent-memory region."
)
data_option = click.option("--data", type=PATH, required=True, help="A sealed dataset.")
cfg_argument = click.argument("cfg", type=PATH)
