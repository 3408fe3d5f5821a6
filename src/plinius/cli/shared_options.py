"""Options and arguments that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from plinius.trust.permit import Permit

_F = TypeVar("_F", bound=Callable[..., object])

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


def job_options(command: _F) -> _F:
    """`--job` and `--owner`, which go together: the parameters job_path and owner_path."""
    owner = click.option("--owner", "owner_path", type=PATH, help="The job's owner (.pub file).")
    job = click.option("--job", "job_path", type=PATH, help="Do what this signed job allows.")
    return job(owner(command))


def load_permit(job_path: Path | None, owner_path: Path | None) -> "Permit | None":
    """What the job given allows, or None if none is given. Raises what reading it raises."""
    from plinius.trust.job_file import load_job
    from plinius.trust.permit import Permit
    from plinius.trust.signing import load_signer

    if job_path is None or owner_path is None:
        if job_path or owner_path:
            raise click.UsageError("--job and --owner go together")
        return None
    return Permit(load_job(job_path, load_signer(owner_path)))
