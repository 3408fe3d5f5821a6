"""Sealed datasets: `seal` creates one, `inspect` shows what is readable without a key."""

from pathlib import Path
from typing import Any

import click

from plinius.cli.console import answer, counting
from plinius.cli.inspect_files import inspect_file
from plinius.cli.shared_options import PATH, json_option, key_option
from plinius.data.records import Source
from plinius.data.sealed_dataset import seal_dataset
from plinius.keys import load_key
from plinius.sources.folder import folder_source
from plinius.sources.idx import idx_source
from plinius.sources.npz import npz_source
from plinius.sources.original_plinius import legacy_source


@click.command()
@key_option
@click.option("-o", "--output", type=PATH, required=True, help="The sealed dataset to create.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["idx", "npz", "folder", "plinius"]),
    help="The format of the data; by default it follows from the other options.",
)
@click.option("--images", type=PATH, help="IDX images, or the original's encrypted images.")
@click.option("--labels", type=PATH, help="IDX labels, or the original's encrypted labels.")
@click.option("--npz", type=PATH, help="An .npz archive of arrays x and y.")
@click.option("--folder", type=PATH, help="A folder of class folders of PNG or JPEG images.")
@click.option(
    "--classes",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="The number of classes; every label must be below it. 0: unknown.",
)
@click.option("--legacy-key", help="The original's published key, in hex (format plinius).")
@click.option(
    "--skip-bytes",
    type=click.IntRange(0),
    help="The images file is a part of a larger one: skip this many bytes (format plinius).",
)
@json_option
def seal(key_path: Path, output: Path, as_json: bool, **source: Any) -> None:
    """Seal a dataset: only the owner's key opens it, record by record."""
    key = load_key(key_path)
    with counting("sealing") as progress:
        header = seal_dataset(_source(**source), key, output, progress)
    answer(
        {
            "sealed": str(output),
            "id": header.id.hex(),
            "count": header.count,
            "bytes": header.size,
            "sample": [str(header.sample.dtype), list(header.sample.shape)],
            "label": [str(header.label.dtype), list(header.label.shape)],
            "classes": header.classes,
        },
        as_json,
    )


def _source(
    kind: str | None,
    images: Path | None,
    labels: Path | None,
    npz: Path | None,
    folder: Path | None,
    classes: int,
    legacy_key: str | None,
    skip_bytes: int | None,
) -> Source:
    """The source that the options name. Raises click.UsageError if they contradict each other."""
    kind = kind or ("npz" if npz else "folder" if folder else "idx")
    needed = {"npz": [npz], "folder": [folder]}.get(kind, [images, labels])
    if all(path is None for path in needed):
        names = {"npz": "--npz", "folder": "--folder"}.get(kind, "--images and --labels")
        raise click.UsageError(f"--format {kind} needs {names}")
    if len([path for path in (images or labels, npz, folder) if path]) > 1:
        raise click.UsageError("name one source: --images and --labels, --npz, or --folder")
    if kind != "plinius" and (legacy_key or skip_bytes is not None):
        raise click.UsageError("--legacy-key and --skip-bytes go with --format plinius")
    if npz:
        return npz_source(npz, classes)
    if folder:
        return folder_source(folder)
    if kind == "idx":
        return idx_source(images, labels, classes)
    try:
        key = bytes.fromhex(legacy_key or "")
    except ValueError:
        raise click.UsageError("--legacy-key is 32 hex digits") from None
    return legacy_source(key, images, labels, skip_bytes)


@click.command()
@click.argument("file", type=PATH)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what a sealed dataset or a region is, without a key."""
    answer(inspect_file(file), as_json)
