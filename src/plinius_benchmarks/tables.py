"""Tables of what was measured, for the terminal."""

from collections.abc import Callable

from rich.table import Table

from plinius_benchmarks import paper
from plinius_benchmarks.machine import in_words
from plinius_benchmarks.report import Report, Row


def tables(report: Report) -> list[Table]:
    """The figures of a report, then its targets, if it has any."""
    made = [_MAKERS[report["name"]](report)]
    return [*made, target_table(report)] if report["targets"] else made


def target_table(report: Report) -> Table:
    """What was claimed, and whether it holds."""
    table = Table("target", "measured", "wanted", "", title=f"targets: {report['title']}")
    for target in report["targets"]:
        sign = "at least" if target["at_least"] else "at most"
        met = "[green]met[/]" if target["met"] else "[bold red]NOT met[/]"
        table.add_row(target["what"], f"{target['value']:.4g}", f"{sign} {target['bound']:g}", met)
    return table


def _mirror(report: Report) -> Table:
    table = _table(
        report, "medium", "MB", "who", "save ms", "GB/s", "restore ms", "GB/s", "of it the medium"
    )
    for row in report["rows"]:
        parts = row.get("parts")
        shares = (
            ", ".join(
                f"{parts[what]['share']:.0%} of {what} (paper {paper.TABLE_I[what]:.0%})"
                for what in paper.TABLE_I
            )
            if parts
            else ""
        )
        table.add_row(
            row["place"], f"{row['bytes'] / 1e6:.0f}", row["who"],
            _ms(row.get("save")), _rate(row, "save"), _ms(row.get("restore")),
            _rate(row, "restore"), shares,
        )  # fmt: skip
    return table


def _batch(report: Report) -> Table:
    table = _table(
        report, "batch", "plain s", "sealed s", "times", "opening costs", "paper: plain", "sealed"
    )
    for row in report["rows"]:
        known = row["batch"] in paper.FIG_8_BATCHES
        at = paper.FIG_8_BATCHES.index(row["batch"]) if known else None
        table.add_row(
            str(row["batch"]), _s(row["plain"]), _s(row["sealed"]), f"{row['times']:.3f}",
            f"{row['share']:.2%}",
            *(str(paper.FIG_8[way][at] or "") if at is not None else "" for way in paper.FIG_8),
        )  # fmt: skip
    return table


def _crash(report: Report) -> Table:
    table = _table(report, "run", "iterations run", "kills", "last loss", "a kill costs, s")
    for row in report["rows"]:
        if row["way"] == "restart":
            took = f"{row['beyond']:.2f} beyond importing torch"
            table.add_row(f"1 GB of state, {row['place']}", "", "", "", took)
        else:
            lost = sum(row["lost"]) / len(row["lost"]) if row["lost"] else None
            table.add_row(
                row["way"], str(row["iterations"]), str(len(row["kills"])),
                f"{row['losses'][-1]:.3f}", "" if lost is None else f"{lost:.1f}",
            )  # fmt: skip
    return table


def _overhead(report: Report) -> Table:
    table = _table(
        report, "model", "medium", "mirrored", "MB", "iteration s", "held ms", "cost", "whole"
    )
    for row in report["rows"]:
        table.add_row(
            row["model"], row["place"], row["way"], f"{row['bytes'] / 1e6:.1f}",
            _s(row["iteration"]), _ms(row["held"]), f"{row['share']:.2%}", f"{row['whole']:+.1%}",
        )  # fmt: skip
    return table


def _sps(report: Report) -> Table:
    table = _table(
        report, "granularity", "write-back", "form", "swaps", "swaps/us", "slices", "fences",
        "lines", "bytes", "paper, SGX (native)",
    )  # fmt: skip
    for row in report["rows"]:
        table.add_row(
            row["granularity"], row["pwb"], row["form"], str(row["swaps"]),
            f"{row['swaps_per_us']:.4g}",
            f"{row['slowest_slice']:.3g} .. {row['fastest_slice']:.3g}",
            f"{row['fences']:g}", f"{row['flushed_lines']:g}", f"{row['bytes_written']:,.0f}",
            _of_fig_6(row),
        )  # fmt: skip
    return table


def _of_fig_6(row: Row) -> str:
    flush = "CLFLUSH+NOP" if row["pwb"] == "clflush" else "CLFLUSHOPT+SFENCE"
    if row["granularity"] == "PAGE" or row["swaps"] not in paper.FIG_6_SWAPS:
        return ""  # the paper has no such medium
    at = paper.FIG_6_SWAPS.index(row["swaps"])
    return f"{paper.FIG_6[flush]['SGX-Romulus'][at]:g} ({paper.FIG_6[flush]['native'][at]:g})"


def _iteration(report: Report) -> Table:
    table = _table(report, "contestant, or part of it", "s/iteration", "ratio (of CPU time)", "ms")
    for row in report["rows"]:
        if "iteration" in row:
            ratios = [
                f"{one['time']:.3f} ({one['cpu_time']:.3f}) of: {other}"
                for other, one in row["ratios"].items()
            ]
            table.add_row(row["who"], _s(row["iteration"]), "\n".join(ratios), "")
        else:
            table.add_row(row["who"], "", f"{row['share']:.2%} of it", f"{row['ms']:.2f}")
    return table


_MAKERS: dict[str, Callable[[Report], Table]] = {
    "sps": _sps,
    "iteration": _iteration,
    "mirror": _mirror,
    "batch": _batch,
    "crash": _crash,
    "overhead": _overhead,
}


def _table(report: Report, *columns: str) -> Table:
    caption = " ".join(report["notes"])
    return Table(
        *columns, title=f"{report['title']}\n{in_words(report['machine'])}", caption=caption
    )


def _ms(values: list[float] | None) -> str:
    return (
        f"{1e3 * values[1]:.2f} ({1e3 * values[0]:.2f} .. {1e3 * values[2]:.2f})" if values else ""
    )


def _s(values: list[float]) -> str:
    return f"{values[1]:.3f} ({values[0]:.3f} .. {values[2]:.3f})"


def _rate(row: Row, what: str) -> str:
    return f"{row['bytes'] / row[what][1] / 1e9:.2f}" if what in row else ""
