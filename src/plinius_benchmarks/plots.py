"""Plots of what was measured, beside the paper's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from plinius.errors import NotInstalledError, StorageError
from plinius.files import publish
from plinius_benchmarks import paper
from plinius_benchmarks.machine import in_words
from plinius_benchmarks.report import Report


def plot(report: Report, path: Path) -> None:
    """Draw a report into a picture file.

    Raises NotInstalledError without matplotlib, StorageError if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotInstalledError(
            "A plot needs matplotlib, which is not installed",
            "Install it (pip install matplotlib), or leave the plot out",
        ) from None
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    _DRAWERS[report["name"]](report, figure)
    figure.suptitle(f"{report['title']}\n{in_words(report['machine'])}", fontsize=10)
    try:
        with publish(path) as file:
            figure.savefig(file, dpi=110, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:  # ValueError: no such picture format
        raise StorageError(f"Cannot write {path}: {error}", "Name another file (.png)") from None


def _mirror(report: Report, figure: Any) -> None:
    places = sorted({row["place"] for row in report["rows"]}, reverse=True)
    everyone = [*dict.fromkeys(row["who"] for row in report["rows"])]
    grid = figure.subplots(2, len(places) + 1, squeeze=False)
    lines: dict[str, Any] = {}
    for line, what in enumerate(("save", "restore")):
        for column, place in enumerate(places):
            axes = grid[line][column]
            for number, who in enumerate(everyone):
                rows = [r for r in report["rows"] if (r["place"], r["who"]) == (place, who)]
                points = [(r["bytes"] / 1e6, 1e3 * r[what][1]) for r in rows if what in r]
                if points:
                    style = "-" if who.startswith("plinius") else ":"
                    color = f"C{number}" if number < 10 else ("black", "gold", "teal")[number % 3]
                    (lines[who],) = axes.plot(
                        *zip(*points, strict=True), style, marker="o", ms=3, color=color
                    )
            _dress(axes, f"{what}, {place}")
        axes = grid[line][-1]
        for name, times in paper.FIG_7.items():
            if name.startswith(what):
                axes.plot(paper.FIG_7_MB, times, marker="o", ms=3, label=name)
        axes.legend(fontsize=6)
        _dress(axes, f"{what}, the paper's Fig. 7")
    figure.legend(lines.values(), lines.keys(), fontsize=7, ncols=5, loc="outside lower center")


_SPS_STYLES = {"native": "-", "SGX-Romulus": "--", "SCONE": ":"}


def _sps(report: Report, figure: Any) -> None:
    here, there = figure.subplots(1, 2, sharey=True)
    curves: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in report["rows"]:
        key = (row["granularity"], row["pwb"], row["form"])
        curves.setdefault(key, []).append((row["swaps"], row["swaps_per_us"]))
    for (granularity, pwb, form), points in curves.items():
        style = {"marker": "o", "markersize": 3, "linestyle": "-" if form == "vectorised" else ":"}
        here.plot(*zip(*points, strict=True), label=f"{granularity} {pwb}, {form}", **style)
    for flush, machines in paper.FIG_6.items():
        for name, rates in machines.items():
            style = {"linestyle": _SPS_STYLES[name], "color": "C0" if "OPT" in flush else "C1"}
            there.plot(paper.FIG_6_SWAPS, rates, label=f"{flush}, {name}", **style)
    for axes, title in ((here, "measured"), (there, "the paper's Fig. 6: Xeon Gold 5215, Optane")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("swaps a transaction")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    here.set_ylabel("swaps per microsecond")


def _iteration(report: Report, figure: Any) -> None:
    axes = figure.subplots()
    rows = [row for row in report["rows"] if "iteration" in row]
    least, median, most = zip(*(row["iteration"] for row in rows), strict=True)
    left = [middle - low for middle, low in zip(median, least, strict=True)]
    right = [high - middle for high, middle in zip(most, median, strict=True)]
    axes.barh([row["who"] for row in rows], median, xerr=(left, right), alpha=0.7)
    axes.set_xlabel("seconds an iteration: median, least and most")
    axes.invert_yaxis()


def _dress(axes: Any, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("MB", fontsize=8)
    axes.set_ylabel("ms", fontsize=8)
    axes.grid(alpha=0.3, which="both")


def _batch(report: Report, figure: Any) -> None:
    here, there = figure.subplots(1, 2)
    for way in ("plain", "sealed"):
        points = [(row["batch"], row[way][1]) for row in report["rows"]]
        here.plot(*zip(*points, strict=True), marker="o", label=way)
        known = [
            (batch, seconds)
            for batch, seconds in zip(paper.FIG_8_BATCHES, paper.FIG_8[way], strict=True)
            if seconds is not None
        ]
        there.plot(*zip(*known, strict=True), marker="o", label=way)
    for axes, title in ((here, "measured"), (there, "the paper's Fig. 8, emlSGX-PM")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("batch")
        axes.set_ylabel("seconds an iteration")
        axes.grid(alpha=0.3)
        axes.legend()


def _crash(report: Report, figure: Any) -> None:
    axes = figure.subplots()
    for row in report["rows"]:
        if "losses" not in row:
            continue
        steps = range(1, len(row["losses"]) + 1)
        width = (
            2 if row["kills"] else 6
        )  # the run that is not killed shows below one that equals it
        (line,) = axes.plot(steps, row["losses"], label=row["way"], lw=width, alpha=0.7)
        for at in row["kills"]:
            axes.axvline(at, color=line.get_color(), alpha=0.25, linestyle="--")
    axes.set_xlabel("iterations run, over all starts (dashed: SIGKILL)")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()


def _overhead(report: Report, figure: Any) -> None:
    axes = figure.subplots()
    ways = [row for row in report["rows"] if row["way"] != "no mirror"]
    names = [f"{row['model']}\n{row['place']}, {row['way']}" for row in ways]
    axes.barh(names, [100 * row["share"] for row in ways])
    axes.axvline(1, linestyle="--", alpha=0.5)
    axes.set_xlabel("% of an iteration that the loop is held")
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()


_DRAWERS: dict[str, Callable[[Report, Any], None]] = {
    "sps": _sps,
    "iteration": _iteration,
    "mirror": _mirror,
    "batch": _batch,
    "crash": _crash,
    "overhead": _overhead,
}
