"""Markdown tables and plots from the logs of `timing.measure`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

import timing
from timing import Quartiles, Timed, quartiles

LONGEST_BAR = 6  # in the figure; a longer one is cut and has its number
MARKERS = "osD^v"  # of the programs in a figure
CALLS = "a call for each gradient"
# What a program is divided by, if it is not the first that was timed with it.
REFERENCES = {
    "diloco over AdamW": "AdamW",
    "diloco over AdamW, streaming": "AdamW",
    f"Entropy-SGD, Gaussian, streaming, {CALLS}": f"SGD, {CALLS}",
}


def write(log: pathlib.Path, show: Callable[[dict[str, Any], pathlib.Path], str]) -> None:
    """Prints what `show` makes of the results, and writes it next to the log.

    It is given the folder of the log too, for its figures.
    """
    found = timing.read(log)
    made = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    page = f"# {log.stem}\n\n{made}\n\n{show(found['results'], log.parent)}\n"
    log.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


def reference(rows: Sequence[Timed], name: str) -> Timed:
    """Of the program with this name."""
    return find(rows, REFERENCES.get(name, rows[0].name))


def find(rows: Sequence[Timed], name: str) -> Timed:
    return next(row for row in rows if row.name == name)


def ratio(row: Timed, other: Timed) -> Quartiles:
    """Of the times of a gradient in the same round."""
    return quartiles(np.divide(row.times, other.times))


def start_ratio(row: Timed, other: Timed) -> Quartiles:
    """Of the seconds to trace and compile, likewise."""
    return quartiles(row.starts / other.starts)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(found: Quartiles) -> str:
    """As in 1.11 (1.09 to 1.12)."""
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def programs(results: dict[str, list[Timed]], folder: pathlib.Path) -> str:
    """A table for each comparison."""
    return "\n\n".join(
        f"{name}; {len(rows[0].times)} rounds\n\n{_programs(rows)}"
        for name, rows in results.items()
    )


def _programs(rows: Sequence[Timed]) -> str:
    headings = ["", "ms per gradient", "divided by", "ratio (quartiles)"]
    headings += ["trace and compile, s", "ratio", "temporaries, MiB", "with state, MiB"]
    return markdown(headings, map(_cells, rows, [reference(rows, row.name) for row in rows]))


def _cells(row: Timed, other: Timed) -> list[str]:
    compiled = [
        f"{np.median(row.starts):.2f}",
        f"{start_ratio(row, other).median:.2f}",
        f"{row.temporary_bytes / 2**20:.1f}",
        f"{row.peak_bytes / 2**20:.1f}",
    ]
    return [
        row.name,
        f"{np.median(row.times) / 1e3:.4g}",
        "" if row is other else other.name,
        "1" if row is other else spread(ratio(row, other)),
        *(compiled if any(row.starts) else [""] * len(compiled)),
    ]


def sweep(label: str, results: dict[str, list[Timed]]) -> str:
    """The cost of a gradient, then of compiling: a row for each value."""
    first, *rest = (row.name for row in next(iter(results.values())))
    cost, start = [], []
    for value, rows in results.items():
        pairs = [(row, reference(rows, row.name)) for row in rows[1:]]
        milliseconds, seconds = np.median(rows[0].times) / 1e3, np.median(rows[0].starts)
        name = f"{int(value):,}"
        cost.append([name, f"{milliseconds:.3g}", *(spread(ratio(*pair)) for pair in pairs)])
        start.append([name, f"{seconds:.2f}", *(f"{start_ratio(*p).median:.1f}" for p in pairs)])
    names = [f"{name} / {REFERENCES.get(name, first)}" for name in rest]
    return "\n\n".join(
        (
            markdown([label, f"{first}, ms per gradient", *names], cost),
            markdown([label, f"{first}, s to trace and compile", *names], start),
        )
    )


def draw_bars(results: dict[str, list[Timed]], path: pathlib.Path) -> None:
    """All programs of every comparison, relative to the first."""
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)
    for panel, (name, rows) in zip(panels[0], results.items(), strict=True):
        for row in rows[::-1]:
            found = ratio(row, rows[0])
            panel.barh(row.name, min(found.median, LONGEST_BAR), color="C0")
            if found.median > LONGEST_BAR:
                number = f"{found.median:.0f} "
                panel.text(LONGEST_BAR, row.name, number, ha="right", va="center", color="w")
            else:
                panel.plot([found.low, found.high], [row.name] * 2, color="black")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(name.replace(": ", "\n"), fontsize=8, loc="left")
        panel.set_xlabel(f"time of a gradient / scanned {rows[0].name}'s", fontsize=8)
        panel.set_xlim(0, LONGEST_BAR)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_sweep(label: str, results: dict[str, list[Timed]], path: pathlib.Path) -> None:
    """The cost of a gradient, and of compiling, against the value that `results` go by."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    cost, start = figure.subplots(1, 2)
    values = [float(value) for value in results]
    for index, name in enumerate(row.name for row in next(iter(results.values()))):
        rows = [find(measured, name) for measured in results.values()]
        style = {"label": name, "marker": MARKERS[index], "color": f"C{index}"}
        start.plot(values, [np.median(row.starts) for row in rows], **style)
        others = [reference(measured, name) for measured in results.values()]
        if rows[0] is not others[0] and name not in REFERENCES.values():
            style["label"] = f"{name} / {others[0].name}"
            found = [ratio(row, other) for row, other in zip(rows, others, strict=True)]
            middle = np.array([one.median for one in found])
            bars = middle - [one.low for one in found], [one.high for one in found] - middle
            cost.errorbar(values, middle, bars, capsize=3, **style)
    cost.axhline(1, color="grey", linewidth=0.8)
    cost.set(ylabel="time of a gradient, as a ratio", ylim=(0, None))
    highest = max(np.median(row.starts) for rows in results.values() for row in rows)
    start.set(ylabel="seconds to trace and compile", ylim=(0, 1.5 * highest))  # room for the legend
    for axes in (cost, start):
        axes.set(xscale="log", xlabel=label, xticks=values)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left" if axes is start else "best")
    figure.savefig(path, dpi=150)
