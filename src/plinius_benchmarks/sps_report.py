"""SPS for people: a table, and a plot beside the figures of the paper."""

from pathlib import Path

from rich.table import Table

from plinius.errors import StorageError
from plinius_benchmarks.machine import in_words
from plinius_benchmarks.sps import SIZES, Report, Row

# Swaps per microsecond at 2, 4, ... 2048 swaps a transaction: Fig. 6 of "Plinius: Secure and
# Persistent Machine Learning Model Training" (DSN 2021), read off its vector paths: good to 1-2 %.
# The machine: two Xeon Gold 5215, 40 cores, 4 Optane DIMMs; SGX in simulation.
PAPER = {
    "CLFLUSH+NOP": {
        "native": (1.6, 3.1, 5.7, 10, 15.9, 23, 29.5, 34.7, 38.1, 40.1, 41.1),
        "SGX-Romulus": (0.4, 0.8, 1.6, 3.1, 5.5, 9.2, 13.9, 18.6, 22.6, 25.4, 26.9),
        "SCONE": (1.0, 2.1, 3.7, 6.1, 9.6, 13.8, 1.9, 4.0, 7.9, 15.0, 16.2),
    },
    "CLFLUSHOPT+SFENCE": {
        "native": (1.6, 3.1, 5.8, 10.2, 16.2, 23.4, 30.2, 35.4, 38.8, 40.8, 41.9),
        "SGX-Romulus": (0.4, 0.8, 1.6, 3.1, 5.5, 9.2, 13.8, 18.6, 22.5, 25.0, 26.5),
        "SCONE": (1.1, 2.1, 3.7, 6.1, 9.6, 14.0, 1.9, 4.0, 8.0, 15.3, 16.3),
    },
}
_STYLES = {"native": "-", "SGX-Romulus": "--", "SCONE": ":"}


def sps_table(report: Report) -> Table:
    """Each point: median and span of its slices, and what a transaction costs."""
    title = f"SPS, swaps/us ({in_words(report['machine'])})"
    table = Table(title=title, caption="A transaction's costs are counted, not estimated.")
    for name in ("granularity", "write-back", "form"):
        table.add_column(name)
    for name in ("swaps", "swaps/us", "slices", "fences", "lines", "bytes", "paper, SGX (native)"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        table.add_row(
            str(row["granularity"]),
            str(row["pwb"]),
            str(row["form"]),
            f"{row['swaps']}",
            f"{row['swaps_per_us']:.4g}",
            f"{row['slowest_slice']:.3g} .. {row['fastest_slice']:.3g}",
            f"{row['fences']:g}",
            f"{row['flushed_lines']:g}",
            f"{row['bytes_written']:,.0f}",
            _paper(row),
        )
    return table


def sps_plot(report: Report, path: Path) -> None:
    """Draw the curves measured here beside the paper's, into a picture file.

    Raises StorageError where matplotlib is not installed or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise StorageError(
            "A plot needs matplotlib, which is not installed",
            "Install it (pip install matplotlib), or leave the plot out",
        ) from None
    figure = Figure(figsize=(12, 5), layout="constrained")
    here, paper = figure.subplots(1, 2, sharey=True)
    curves: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in report["rows"]:
        key = (str(row["granularity"]), str(row["pwb"]), str(row["form"]))
        curves.setdefault(key, []).append((float(row["swaps"]), float(row["swaps_per_us"])))
    for (granularity, pwb, form), points in curves.items():
        style = {"marker": "o", "markersize": 3, "linestyle": "-" if form == "vectorised" else ":"}
        here.plot(*zip(*points, strict=True), label=f"{granularity} {pwb}, {form}", **style)
    for flushes, machines in PAPER.items():
        for name, rates in machines.items():
            colour = "tab:blue" if "OPT" in flushes else "tab:orange"
            label = f"{flushes}, {name}"
            paper.plot(SIZES, rates, label=label, linestyle=_STYLES[name], color=colour)
    here.set_title(f"measured: {in_words(report['machine'])}")
    paper.set_title("paper, Fig. 6: Xeon Gold 5215, Optane")
    for axes in (here, paper):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("swaps a transaction")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    here.set_ylabel("swaps per microsecond")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: no such picture format
        raise StorageError(f"Cannot write {path}: {error}", "Name another file (.png)") from None


def _paper(row: Row) -> str:
    column = "CLFLUSH+NOP" if row["pwb"] == "clflush" else "CLFLUSHOPT+SFENCE"
    if row["granularity"] == "PAGE" or row["swaps"] not in SIZES:
        return ""  # the paper has no such medium
    at = SIZES.index(int(row["swaps"]))
    return f"{PAPER[column]['SGX-Romulus'][at]:g} ({PAPER[column]['native'][at]:g})"
