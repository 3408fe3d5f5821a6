"""`describe`: the layers of a Darknet network, as a table and as a picture."""

from dataclasses import asdict
from pathlib import Path

import click

from plinius.cli.console import answer, columns_to_fit, say
from plinius.cli.shared_options import PATH, cfg_argument, json_option
from plinius.darknet.cfg import read_cfg
from plinius.files import publish
from plinius.jsonvalue import Json


@click.command()
@cfg_argument
@click.option("--draw", "picture", type=PATH, help="Also draw the network into this new .svg file.")
@json_option
def describe(cfg: Path, picture: Path | None, as_json: bool) -> None:
    """Show the layers of a Darknet network: sizes, parameters, operations, memory."""
    from plinius.darknet.description import describe as described
    from plinius.darknet.description import table
    from plinius.darknet.drawing import draw
    from plinius.darknet.memory import shown

    if picture is not None and picture.suffix != ".svg":
        raise click.UsageError("--draw takes a name that ends in .svg")
    network = described(read_cfg(cfg))
    for warning in network.warnings:
        say(f"warning: {warning}")
    if picture is not None:
        with publish(picture) as file:
            file.write(draw(network).encode())
    if as_json:
        values: dict[str, Json] = asdict(network)
        values["layers"] = values.pop("rows")
        answer(values, True)
        return
    click.echo(table(network, columns_to_fit()))
    click.echo(f"A .weights file has {network.weights_file_bytes:,} bytes.")
    click.echo(f"Training takes at least {shown(network.training_bytes)} of memory.")
