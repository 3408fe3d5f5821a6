"""One page of all reports: self-contained HTML, the targets first."""

import base64
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path

from rich.console import Console

from plinius.files import publish
from plinius_benchmarks.machine import in_words
from plinius_benchmarks.report import Report
from plinius_benchmarks.tables import tables

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
pre{font-size:11px;line-height:1.2;overflow-x:auto}img{max-width:100%}
td,th{padding:.15em .8em;text-align:left}.no{color:#b00020;font-weight:bold}.yes{color:#1b6e3c}"""


def write_page(reports: Sequence[Report], pictures: dict[str, Path], path: Path) -> None:
    """Write the page. Raises StorageError."""
    machine = reports[0]["machine"]
    parts = [
        "<!doctype html><meta charset=utf-8><title>Plinius: benchmarks</title>",
        f"<style>{_STYLE}</style><h1>Plinius: benchmarks</h1>",
        f"<p>{escape(in_words(machine))}; load at the end of the first: {machine['load']}</p>",
        "<h2>Targets</h2><table><tr><th>target<th>measured<th>wanted<th></tr>",
    ]
    for report in reports:
        for target in report["targets"]:
            sign = "≥" if target["at_least"] else "≤"
            met = "<td class=yes>met" if target["met"] else "<td class=no>not met"
            parts.append(
                f"<tr><td>{escape(target['what'])}<td>{target['value']:.4g}"
                f"<td>{sign} {target['bound']:g}{met}</tr>"
            )
    parts.append("</table>")
    for report in reports:
        parts.append(f"<h2>{escape(report['title'])}</h2>")
        parts += [f"<p>{escape(note)}</p>" for note in report["notes"]]
        picture = pictures.get(report["name"])
        if picture:
            data = base64.b64encode(picture.read_bytes()).decode()
            parts.append(
                f"<img alt='{escape(report['title'])}' src='data:image/png;base64,{data}'>"
            )
        text = StringIO()
        Console(file=text, width=170).print(tables(report)[0])
        parts.append(
            f"<details><summary>figures</summary><pre>{escape(text.getvalue())}</pre></details>"
        )
    with publish(path) as file:
        file.write(("\n".join(parts) + "\n").encode())
