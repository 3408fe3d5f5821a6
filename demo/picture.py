"""Plots the loss of a run, with its kills: picture.py METRICS.jsonl KILLS.json OUT.png."""

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

INK, FAINT, BLUE, PALE, RED = "#24292f", "#8c959f", "#0969da", "#a8d1ff", "#cf222e"


def draw(metrics: Path, kills: Path, out: Path) -> None:
    """Plot loss and average loss over the iterations, with a red mark at each kill."""
    # A job lets the losses leave after every so many iterations only.
    written = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line for line in written if line["loss"] is not None]
    killed = [kill["after_iteration"] for kill in json.loads(kills.read_text())]
    x = [line["iteration"] for line in lines]
    average = {line["iteration"]: line["average_loss"] for line in lines}

    mpl.rcParams |= {"font.family": "DejaVu Sans", "font.size": 12, "axes.edgecolor": FAINT}
    figure = Figure(figsize=(8, 4.2), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.plot(x, [line["loss"] for line in lines], color=PALE, lw=1, label="loss")
    axes.plot(x, list(average.values()), color=BLUE, lw=2.2, label="running average")
    for number, at in enumerate(killed):
        axes.axvline(at, color=RED, lw=1, ls=(0, (4, 3)), zorder=1)
        label = "SIGKILL, then resumed" if number == 0 else None
        height = average[min(x, key=lambda it: abs(it - at))]
        axes.plot(at, height, "X", ms=10, mfc=RED, mec="white", ls="", zorder=5, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, x[-1])
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("iteration", color=INK)
    axes.set_ylabel("loss", color=INK)
    title = f"MNIST on sealed data, killed {len(killed)} times"
    axes.set_title(title, loc="left", color=INK, pad=36, size=15, weight="bold")
    axes.tick_params(colors=INK, which="both")
    axes.grid(axis="y", color="#eaeef2", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Above the plot, where no kill can cross it.
    axes.legend(
        frameon=False,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1),
        ncols=3,
        borderpad=0.2,
    )
    figure.savefig(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("Name the metrics file, the file of kills and the picture to write.")
    draw(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
