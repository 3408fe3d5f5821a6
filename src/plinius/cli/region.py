"""Regions: `info`, `verify`, `log`, `ls`, `diff`, `backup`, `compact`."""

from pathlib import Path

import click

from plinius.cli.commits import commit_option, region_key_options, region_keys, shown_time
from plinius.cli.console import answer, counting, say
from plinius.cli.inspect_files import describe_region
from plinius.cli.shared_options import PATH, json_option, key_option
from plinius.cli.verify import verify_region
from plinius.history.live_region import read_region
from plinius.history.reading import snapshot_of
from plinius.jsonvalue import Json
from plinius.key_file import load_key
from plinius.maintenance.backup import backup
from plinius.maintenance.compaction import compact
from plinius.maintenance.listing import commits_in, differences, tensors_of


@click.group()
def region() -> None:
    """Show, check, compare or copy a region, also while a run uses it."""


@region.command()
@click.argument("file", type=PATH)
@json_option
def info(file: Path, as_json: bool) -> None:
    """Show a region's structure, without a key."""
    answer(read_region(file, describe_region), as_json)


@region.command()
@click.argument("file", type=PATH)
@region_key_options
@json_option
def verify(file: Path, key_path: Path | None, job_path: Path | None, as_json: bool) -> None:
    """Check a region's structure, and with a key that the newest commit and every record open."""
    answer(verify_region(file, region_keys(key_path, job_path)), as_json)


@region.command()
@click.argument("file", type=PATH)
@region_key_options
@json_option
def log(file: Path, key_path: Path | None, job_path: Path | None, as_json: bool) -> None:
    """List the commits that a run can go back to, and what they take of the region.

    Without a key nothing of it is authenticated. With one, what cannot be used says so, and
    metrics that are in the state are shown.
    """
    keys = region_keys(key_path, job_path)
    commits, back = read_region(file, lambda opened: commits_in(opened, keys.run if keys else None))
    kept = sum(one.nbytes for one in commits[:-1])
    if as_json:
        listed: list[Json] = [{**vars(one), "usable": not one.state} for one in commits]
        answer({"commits": listed, "kept_bytes": kept, "went_back": back}, as_json)
        return
    lines = [("commit", "iteration", "MB", "name", "copied at")]
    for one in commits:
        told = [f"{name} {value:.5g}" for name, value in one.metrics.items()]
        when = "" if one.time is None else shown_time(one.time)
        told = [part for part in (when, one.state, *told) if part]
        iteration = "?" if one.iteration is None else str(one.iteration)
        name = "" if one.name.isdigit() else one.name
        lines.append((str(one.commit), iteration, f"{one.nbytes / 1e6:.1f}", name, ", ".join(told)))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        cells = [text.rjust(widths[i]) if i < 3 else text.ljust(widths[i])
                 for i, text in enumerate(line[:4])]  # fmt: skip
        click.echo("  ".join([*cells, line[4]]).rstrip())
    for entry in back:
        say("Went back from commit {} (iteration {}) to commit {} (iteration {}).".format(*entry))  # type: ignore[misc]
    say(f"{len(commits) - 1} kept commits take {kept / 1e6:.1f} MB of the region.")


@region.command(name="ls")
@click.argument("file", type=PATH)
@region_key_options
@commit_option
@json_option
def list_tensors(
    file: Path, key_path: Path | None, job_path: Path | None, commit: str, as_json: bool
) -> None:
    """List what a region holds: its extents, or with a key the tensors of a commit."""
    keys = region_keys(key_path, job_path)
    if keys is None:
        if commit != "newest":
            raise click.UsageError("--commit needs --key")
        found = read_region(file, describe_region)
        answer({"extents": found["extents"], "roots": found["roots"]}, as_json)
        return
    snapshot = snapshot_of(file, keys.run, commit)
    tensors = tensors_of(snapshot)
    if as_json:
        answer({"iteration": snapshot.iteration, "tensors": [*tensors]}, as_json)
        return
    for one in tensors:
        click.echo(f"{one['bytes']:>12}  {one['dtype']:<9} {one['shape']!s:<18} {one['name']}")
    total = sum(tensor.nbytes for tensor in snapshot.tensors)
    say(f"{len(tensors)} tensors, {total:,} bytes, at iteration {snapshot.iteration}.")


@region.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@key_option
@click.option("--second-key", type=PATH, help="The key of the second region, if it is another.")
@click.option("--commit", default="newest", show_default=True, help="Of the first: a kept commit.")
@click.option("--second-commit", default="newest", show_default=True, help="Of the second.")
@json_option
def diff(
    first: Path,
    second: Path,
    key_path: Path,
    second_key: Path | None,
    commit: str,
    second_commit: str,
    as_json: bool,
) -> None:
    """Compare the states of two regions, or two commits of one: which tensors differ."""
    key = load_key(key_path)
    a = snapshot_of(first, key, commit)
    b = snapshot_of(second, load_key(second_key) if second_key else key, second_commit)
    answer(differences(a, b), as_json)


@region.command(name="backup")
@click.argument("file", type=PATH)
@click.argument("destination", type=PATH)
@region_key_options
@json_option
def back_up(
    file: Path, destination: Path, key_path: Path | None, job_path: Path | None, as_json: bool
) -> None:
    """Copy a region to a new file, at one commit of its run, which may go on meanwhile.

    With a key, the copy is opened afterwards: its newest commit, and every record.
    """
    keys = region_keys(key_path, job_path)
    with counting("copying") as progress:
        copied = backup(file, destination, progress)
    result: dict[str, Json] = {
        "copy": str(destination), "commit": copied.commit, "bytes": copied.nbytes
    }  # fmt: skip
    if keys:
        result["mirror_opens"] = verify_region(destination, keys)["mirror_opens"]
    answer(result, as_json)


@region.command(name="compact")
@click.argument("file", type=PATH)
@click.option("--drop", multiple=True, help="First drop this kept commit (may be given again).")
@json_option
def compact_region(file: Path, drop: tuple[str, ...], as_json: bool) -> None:
    """Give the storage that nothing uses back to the file system."""
    done = compact(file, [*dict.fromkeys(drop)])
    answer(
        {"dropped": [*done.dropped], "bytes_before": done.before, "bytes_after": done.after},
        as_json,
    )
