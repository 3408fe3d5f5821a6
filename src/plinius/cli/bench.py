"""`bench`: the measurements, which are not in the wheel but in a clone of the repository."""

import click

from plinius.errors import NotInstalledError


class _Benchmarks(click.Group):
    """The commands of plinius_benchmarks, imported when they are first asked for.

    Raises NotInstalledError where plinius_benchmarks cannot be imported.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the measurements."""
        return _load().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One measurement, or None if there is none of that name."""
        return _load().get_command(ctx, cmd_name)


def _load() -> click.Group:
    try:
        from plinius_benchmarks.commands import bench as group
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("plinius_benchmarks"):
            raise
        raise NotInstalledError(
            "The benchmarks are not part of the installed package",
            "Clone the repository, run make setup in it, and use its .venv/bin/plinius",
        ) from None
    return group


bench = _Benchmarks("bench", help="Measure on this machine what the paper measured on its own.")
