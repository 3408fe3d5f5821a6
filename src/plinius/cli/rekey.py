"""`rekey`: another owner's key for a sealed dataset or a region."""

from pathlib import Path

import click

from plinius.cli.console import answer, counting, say
from plinius.cli.shared_options import PATH, json_option, key_option
from plinius.key_file import load_key
from plinius.maintenance.rekey import kind_of, rekey_dataset
from plinius.maintenance.rekey_region import rekey_region


@click.command()
@click.argument("file", type=PATH)
@key_option
@click.option("--new-key", type=PATH, required=True, help="The key it is sealed with afterwards.")
@json_option
def rekey(file: Path, key_path: Path, new_key: Path, as_json: bool) -> None:
    """Seal a dataset or a region anew under another key, in place of the old file.

    The new file is made beside it, opened, and then renamed; stopped before that, the old file is
    as it was: give the same command again. Copies that others have still open with the old key.
    """
    kind = kind_of(file)
    old, new = load_key(key_path), load_key(new_key)
    with counting("sealing records") as progress:
        call = rekey_dataset if kind == "dataset" else rekey_region
        done = call(file, old, new, progress)
    if not done:
        say(f"{file} is sealed with key {new.id.hex()} already: nothing was done.")
    answer({"rekeyed": str(file), "kind": kind, "key_id": new.id.hex(), "done": done}, as_json)
