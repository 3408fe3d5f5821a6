"""Options and arguments that several commands share."""

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from plinius.errors import KeyFileError, StorageError

_KEY_TEXT = re.compile(r"plinius-[a-z-]*key-[0-9]+\s|\A\s*[0-9A-Fa-f]{64}\s*\Z")


class _Path(click.ParamType[Path]):
    """A path.

    An empty one is refused: it would name the working folder. So is the text of a key, which a
    refusal would else show.
    """

    name = "path"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """The path of an option or argument. Raises StorageError, KeyFileError."""
        name = param.opts[-1] if isinstance(param, click.Option) else self.name_of(param)
        if value == "":
            raise StorageError(
                f"{name} is empty", "Name a file; perhaps a variable of the shell is not set"
            )
        if _KEY_TEXT.search(str(value)):
            raise KeyFileError(
                f"{name} is the text of a key, not a file",
                "Name its file, or give the key with --key - or env:NAME; if others saw this "
                "command, make a new key",
            )
        return Path(str(value))

    @staticmethod
    def name_of(param: click.Parameter | None) -> str:
        """The name of an argument, as its help shows it."""
        return "A path" if param is None or param.name is None else param.name.upper()

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Have the shell complete names of files."""
        return [CompletionItem(incomplete, type="file")]


PATH = _Path()
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
