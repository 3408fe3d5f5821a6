"""Where the text of a key and its passphrase come from."""

import getpass
import os
import re
import sys
import unicodedata
from pathlib import Path

from plinius.errors import KeyFileError, StorageError
from plinius.files import open_to_read

VARIABLE = "PLINIUS_PASSPHRASE"
MAX_BYTES = 4096
NAME_A_KEY = "Name a key file made by plinius keygen"


def key_text(where: str | Path, todo: str = NAME_A_KEY) -> tuple[bytes, str]:
    """The text of a key, at most MAX_BYTES + 1 bytes, and the name of its place for messages.

    `where` is `-` (standard input, to its end), `fd:N` (an open descriptor, to its end),
    `env:NAME` (a variable of the environment), or a file, which only its owner can read. A file
    whose name looks like one of the others is given as ./-. Raises KeyFileError.
    """
    text = os.fspath(where)
    if text == "-" or re.fullmatch("fd:[0-9]{1,9}", text):
        number = int(text.removeprefix("fd:")) if text != "-" else 0
        name = "standard input" if text == "-" else text
        return _to_its_end(number, name), name
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        if (value := os.environ.get(name)) is None:
            raise KeyFileError(f"There is no variable {name!r} in the environment", NAME_A_KEY)
        return os.fsencode(value), f"the variable {name}"
    return _private_file(where, todo), text


def _to_its_end(number: int, name: str) -> bytes:
    found = b""
    try:
        while len(found) <= MAX_BYTES and (piece := os.read(number, MAX_BYTES + 1 - len(found))):
            found += piece
    except OSError as error:
        raise KeyFileError(f"Cannot read {name}: {error.strerror}", NAME_A_KEY) from None
    return found


def _private_file(path: str | Path, todo: str) -> bytes:
    try:
        file = open_to_read(path)
    except StorageError as error:
        raise KeyFileError(error.what, todo) from None
    with file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (os.geteuid(), 0):
            raise KeyFileError(
                f"The key file {path} belongs to another user (uid {status.st_uid})",
                "Make a key of your own, or copy it so that it is yours",
            )
        if status.st_mode & 0o077:
            raise KeyFileError(
                f"Others can read the key file {path} (mode {status.st_mode & 0o777:04o})",
                f"Run chmod 600 {path}, and make a new key if others may have read it",
            )
        return file.read(MAX_BYTES + 1)


def ask_passphrase(name: str, again: bool = False) -> str:
    """The passphrase of the key `name`: of PLINIUS_PASSPHRASE, or asked for on the terminal.

    With `again` it is asked for twice. Raises KeyFileError without a terminal, or if it is empty or
    the two differ.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        try:
            with open("/dev/tty", "wb"):
                pass
        except OSError:
            raise KeyFileError(
                f"The key of {name} needs its passphrase, and there is no terminal to ask on",
                f"Run it on a terminal, or set {VARIABLE}",
            ) from None
        given = getpass.getpass(f"Passphrase of {name}: ", sys.stderr)
        if again and getpass.getpass("The same again: ", sys.stderr) != given:
            raise KeyFileError("The two passphrases differ", "Try again")
    if not given:
        raise KeyFileError("An empty passphrase protects nothing", "Give another one")
    return unicodedata.normalize("NFC", given)
