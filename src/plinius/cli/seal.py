"""`seal`: a sealed dataset of any kind of data, whole or split, and what it is like."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click

from plinius.cli.console import answer, counting, say
from plinius.cli.recipients import sealing_key, to_option
from plinius.cli.shared_options import PATH, json_option
from plinius.data.records import ABSENT, Source
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SourceError
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.sources.folder import ImageOptions, folder_source
from plinius.sources.idx import idx_source
from plinius.sources.labelled_boxes import BoxOptions, boxes_source, read_names
from plinius.sources.npz import npz_source
from plinius.sources.original_plinius import legacy_source
from plinius.sources.seal import SealedPart, seal_parts
from plinius.sources.table import TableOptions, read_table, table_source
from plinius.sources.text import text_source
from plinius.sources.tokenizer import Tokenizer, Tokens

_TABLE = ("target", "drop", "categorical", "ids", "task", "like", "standardize")
_TAKES = {
    "idx": ("images", "labels", "classes"),
    "npz": ("npz", "classes"),
    "folder": ("folder", "resize", "mode", "skip_bad", "unlabelled", "like"),
    "csv": ("csv", *_TABLE),
    "parquet": ("parquet", *_TABLE),
    "boxes": ("boxes", "names", "max_boxes", "resize", "mode", "skip_bad", "like"),
    "text": ("text", "sequence", "tokenizer", "like"),
    "plinius": ("images", "labels", "legacy_key", "skip_bytes"),
}
"""The options that go with each format. An option that does not is refused, never ignored."""

_FILES = ("npz", "folder", "boxes", "csv", "parquet", "text")
_SHOWN_COLUMNS = 64


def _fractions(_: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...]:
    """Fractions, as in 0.8,0.1,0.1; their sum is checked when the data is split."""
    try:
        return tuple(float(part) for part in value.split(",")) if value is not None else ()
    except ValueError:
        raise click.BadParameter(f"{value} is no list like 0.8,0.1,0.1", param=option) from None


def _size(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Width and height in pixels, as in 28x28."""
    if value is None:
        return None
    numbers = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value)
    if not numbers:
        raise click.BadParameter(f"{value} is no size like 28x28", param=option)
    return int(numbers[1]), int(numbers[2])


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_files = _options(
    click.option(
        "--format",
        "kind",
        type=click.Choice([*_TAKES]),
        help="The format of the data; by default it follows from the other options.",
    ),
    click.option("--images", type=PATH, help="IDX images, or the original's encrypted images."),
    click.option("--labels", type=PATH, help="IDX labels, or the original's encrypted labels."),
    click.option("--npz", type=PATH, help="An .npz archive of arrays x and y."),
    click.option("--folder", type=PATH, help="A folder of class folders of PNG or JPEG images."),
    click.option("--boxes", type=PATH,
        help="Pictures with Darknet's label files: a folder, or a file that lists the pictures."),
    click.option("--names", type=PATH, help="The classes of the boxes, one a line."),
    click.option("--max-boxes", type=click.IntRange(1, 10_000),
        help="The most boxes of a picture, as max in the cfg. Default: 90."),
    click.option("--csv", type=PATH, help="A table, with the names of the columns in row 1."),
    click.option("--parquet", type=PATH, help="A table in Parquet."),
    click.option("--text", type=PATH,
        help="A text, or a folder of .txt files; the bytes are the tokens, 0 to 255."),
    click.option("--tokenizer", type=PATH,
        help="A tokenizer.json that makes the tokens of a text."),
    click.option("--classes", type=click.IntRange(0, 2**32 - 1), default=0,
        help="The number of classes; every label must be below it. 0: unknown."),
    click.option("--legacy-key", help="The original's published key, in hex (format plinius)."),
    click.option("--skip-bytes", type=click.IntRange(0),
        help="The images file is a part of a larger one: skip this many bytes (format plinius)."),
)  # fmt: skip
_tables = _options(
    click.option("--target", help="The column to learn. Without it there are no labels."),
    click.option("--drop", multiple=True, help="A column to leave out (may be given again)."),
    click.option("--categorical", multiple=True,
        help="A column that becomes one number for each of its values (may be given again)."),
    click.option("--id", "ids", help="The column that names the records; it is not learned from."),
    click.option("--task", type=click.Choice(["classification", "regression"]),
        help="By default a target of floats is a regression, any other has classes."),
    click.option("--standardize", is_flag=True,
        help="Bring columns to mean 0 and deviation 1 by the (training) data. It is sealed too."),
    click.option("--like", type=PATH,
        help="Take columns, scales and classes, or the tokenizer, from this sealed dataset."),
)  # fmt: skip
_images = _options(
    click.option("--resize", callback=_size, help="Resize images to this size, as in 28x28."),
    click.option("--mode", type=click.Choice(["RGB", "L"]), help="Convert images to this mode."),
    click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be sealed."),
    click.option("--unlabelled", is_flag=True, help="The folder holds images, no class folders."),
    click.option("--sequence", type=click.IntRange(1, 2**20), help="Tokens of a record of a text."),
)
_splits = _options(
    click.option("--split", callback=_fractions,
        help="Seal parts: train,test or train,validation,test, as in 0.8,0.1,0.1."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1),
        help="Decides the split. Default: 0."),
    click.option("--stratify", is_flag=True, help="Split each class by the fractions."),
)  # fmt: skip


@click.command()
@click.option("--key", "key_path", type=PATH, help="The owner's key: a file, -, fd:N, or env:NAME.")
@to_option
@click.option("-o", "--output", type=PATH, required=True, help="The sealed dataset to create.")
@_files
@_tables
@_images
@_splits
@json_option
def seal(
    key_path: Path | None,
    recipients: tuple[Path, ...],
    output: Path,
    as_json: bool,
    split: tuple[float, ...],
    seed: int | None,
    stratify: bool,
    kind: str | None,
    **given: Any,
) -> None:
    """Seal a dataset: only the owner's key opens it, record by record."""
    if not split and (stratify or seed is not None):
        raise click.UsageError("--seed and --stratify go with --split")
    kind = _kind(kind, given)
    if kind == "text" and seed is not None:
        raise click.UsageError("--seed is not for a text: its parts follow each other")
    if recipients and given["like"]:
        raise click.UsageError("--like opens a dataset with --key, so it does not go with --to")
    with sealing_key(key_path, recipients, output) as key:
        source = _source(kind, key, given)
        with counting("sealing") as progress:
            parts = seal_parts(
                source, key, output, split, seed or 0, stratify, given["standardize"], progress
            )
    for remark in _remarks(source):
        say(remark)
    reports = {part.name: _report(part) for part in parts}
    if as_json:
        answer({"parts": dict(reports)} if split else reports[""], True)
        return
    for name, report in reports.items():
        if name:
            say(f"{name}:")
        answer(_flat(report), False)


def _kind(kind: str | None, given: dict[str, Any]) -> str:
    """The format that the options name. Raises click.UsageError if they contradict each other."""
    named = [name for name in _FILES if given[name]]
    kind = kind or (named[0] if named else "idx")
    if len(named) + bool(given["images"] or given["labels"]) > 1:
        raise click.UsageError(
            "name one source: --images and --labels, --npz, --folder, --boxes, --csv, --parquet "
            "or --text"
        )
    needed = ("images", "labels") if kind in ("idx", "plinius") else (kind,)
    if not any(given[name] for name in needed):
        names = " and ".join(f"--{name}" for name in needed)
        raise click.UsageError(f"--format {kind} needs {names}")
    for name, value in given.items():
        if name not in _TAKES[kind] and value not in (None, False, (), 0):
            option = "--" + {"ids": "id"}.get(name, name).replace("_", "-")
            formats = [other for other, takes in _TAKES.items() if name in takes]
            raise click.UsageError(f"{option} goes with --format {' or '.join(formats)}")
    return kind


def _source(kind: str, key: OwnerKey, given: dict[str, Any]) -> Source:
    like = SealedDataset.from_file(given["like"], key) if given["like"] else None
    if kind in ("csv", "parquet"):
        path = given[kind]
        asked = {name: given[name] for name in ("target", "drop", "categorical", "ids", "task")}
        options = TableOptions(**asked, like=like)
        return table_source(read_table(path, cast(Any, kind)), options, str(path))
    if kind == "npz":
        return npz_source(given["npz"], given["classes"])
    if kind in ("folder", "boxes"):
        skipped = (lambda reason: say(f"left out: {reason}")) if given["skip_bad"] else None
        names = like.class_names if like else ()
        images = ImageOptions(given["resize"], given["mode"], given["unlabelled"], names, skipped)
        if kind == "folder":
            return folder_source(given["folder"], images)
        names = read_names(given["names"]) if given["names"] else names
        return boxes_source(given["boxes"], images, BoxOptions(given["max_boxes"] or 90, names))
    if kind == "text":
        return _text(given, like)
    if kind == "idx":
        return idx_source(given["images"], given["labels"], given["classes"])
    try:
        legacy_key = bytes.fromhex(given["legacy_key"] or "")
    except ValueError:
        raise click.UsageError("--legacy-key is 32 hex digits") from None
    return legacy_source(legacy_key, given["images"], given["labels"], given["skip_bytes"])


def _text(given: dict[str, Any], like: SealedDataset | None) -> Source:
    """Records of a text, by bytes, by a tokenizer, or as in `like`."""
    tokenizer, length = None, given["sequence"] or 128
    if like:
        tokens = Tokens.of(like.about, like.name)
        if tokens is None:
            raise SourceError(f"{like.name} holds no text", "Name the sealed text of the training")
        tokenizer = Tokenizer.of(tokens, given["tokenizer"], like.name)
        length = given["sequence"] or like.header.sample.shape[0]
    elif given["tokenizer"]:
        tokenizer = Tokenizer.from_file(given["tokenizer"])
    text = text_source(given["text"], length, tokenizer)
    count, unit = (tokenizer.tokens.count, "tokens") if tokenizer else (256, "bytes")
    if text.left_out:
        say(f"The last {text.left_out} {unit} fill no record and are left out.")
    if not text.is_exact:
        say(
            "warning: the tokens do not give back just this text: the tokenizer changes or leaves "
            "out some of it"
        )
    say(f"plinius train takes it with time_steps={length} and inputs={count} in the cfg.")
    return text.source


def _remarks(source: Source) -> list[str]:
    """What the owner should know about data that can be sealed."""
    remarks = []
    if source.label == ABSENT:
        remarks.append("There are no labels: the dataset is for predictions, not for training.")
    if source.sample != ABSENT and source.sample.dtype.kind == "i":
        remarks.append(
            f"Samples are {source.sample.dtype}: plinius train takes unsigned integers and floats "
            "only; a loop of your own takes them."
        )
    return remarks


def _report(part: SealedPart) -> dict[str, Json]:
    header = part.header
    report: dict[str, Json] = {
        "sealed": str(part.path),
        "id": header.id.hex(),
        "bytes": header.size,
        **part.survey.report(),
    }
    if labels := part.column_labels:
        report["columns"] = part.survey.columns(labels)
    return report


def _flat(report: dict[str, Json]) -> dict[str, Json]:
    """The report with a line for each column of a table."""
    flat = {name: value for name, value in report.items() if name != "columns"}
    columns = cast(dict[str, dict[str, float]], report.get("columns", {}))
    for name, numbers in [*columns.items()][:_SHOWN_COLUMNS]:
        words = ", ".join(f"{what} {number:.6g}" for what, number in numbers.items())
        flat[f"column {name}"] = words
    if len(columns) > _SHOWN_COLUMNS:
        flat["more columns"] = f"{len(columns) - _SHOWN_COLUMNS}, with --json"
    return flat
