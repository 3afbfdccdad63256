"""What a gradient evaluation costs inside Entropy-SGD and DiLoCo, on this machine.

    python benchmarks/speed.py                              # all of it, 35 minutes on two cores
    python benchmarks/speed.py --only table networks        # or growth, start, a sweep of growth
    python benchmarks/speed.py --only growth --report       # from the logs, without measuring
    python benchmarks/speed.py --seconds 2 --out /tmp/look  # a quick look

Each part keeps a log in benchmarks/results/BACKEND/, from which tables and plots are drawn, next to
it. What is in the log, of this machine and this source of the library, is not measured again
unless `--again` says so: an interrupted command can simply be repeated.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import networks
import programs
import pytorch
import report
import startup
import timing
from growth import SWEEPS, against_sgd
from programs import Task, mlp_task
from report import CALLS
from timing import Maker, Timed, interleave

COMPILATIONS = 3  # of each program of the table
RESULTS = pathlib.Path(__file__).parent / "results"
WITHOUT, DIAGNOSTICS = "Entropy-SGD, Gaussian", "Entropy-SGD, Gaussian, diagnostics"

WORKLOADS: dict[str, Callable[[], Task]] = {
    "wide: MLP 784-1024-1024-10, batch 128": lambda: mlp_task((784, 1024, 1024, 10), 128),
    "small: MLP 64-32-10, batch 32": lambda: mlp_task((64, 32, 10), 32, updates=50),
    # One update, as in a train step: a loop around it would be compiled too.
    "deep: MLP of 80 layers of width 16, batch 32": lambda: mlp_task((16,) * 81, 32),
}


class Goal(NamedTuple):
    """At most: a gradient of the wide network, one of the small one, compiling the deep one."""

    wide: float | None = None
    small: float | None = None
    deep: float | None = None


GOALS = {
    "Entropy-SGD, no noise": Goal(1.10, 1.15, 1.8),
    "Entropy-SGD, Rademacher": Goal(1.15, 1.25, 2.2),
    "Entropy-SGD, Gaussian": Goal(1.50, 1.75, 2.2),
    "Entropy-SGD, Gaussian, streaming": Goal(1.25, 1.50, 3.0),
    f"Entropy-SGD, Gaussian, streaming, {CALLS}": Goal(small=1.15),
    DIAGNOSTICS: Goal(small=0.15),  # gradients more than without
    "diloco over AdamW": Goal(1.07, 1.11),
    "diloco over AdamW, streaming": Goal(1.10, 1.30),
}


def contestants(task: Task) -> list[Maker]:
    """All programs of the table; the first is what most of the others are divided by."""
    entropy, diloco = partial(programs.entropy, task), partial(programs.diloco, task)
    streaming = "Entropy-SGD, Gaussian, streaming"
    return [
        *against_sgd(task),
        partial(programs.calls, f"SGD, {CALLS}", programs.sgd(), task),
        partial(programs.calls, f"{streaming}, {CALLS}", entropy(streaming=True), task),
        partial(programs.loops, f"{WITHOUT}, grads given", entropy(), task, given_grads=True),
        partial(programs.loops, DIAGNOSTICS, entropy(diagnostics=True), task),
        partial(programs.scan, "AdamW", programs.adamw(), task),
        partial(programs.loops, "diloco over AdamW", diloco(), task),
        partial(programs.scan, "diloco over AdamW, streaming", diloco(streaming=True), task),
        partial(programs.plain_langevin, task),
        partial(programs.sam, task),
        *([partial(pytorch.mlp, task)] if pytorch.FOUND else []),
    ]


def cost(rows: list[Timed], name: str, compiling: bool) -> report.Quartiles:
    """What a goal is about: a ratio, or the gradients that diagnostics cost."""
    row, other = report.find(rows, name), report.reference(rows, name)
    if compiling:
        return report.start_ratio(row, other)
    if name == DIAGNOSTICS:
        extra = np.subtract(row.times, report.find(rows, WITHOUT).times)
        return timing.quartiles(extra / other.times)
    return report.ratio(row, other)


def against_goals(results: dict[str, list[Timed]]) -> str:
    """The table of the ratios; what misses its goal is bold."""
    headings = ["", "divided by", "wide: goal", "got", "small: goal", "got"]
    headings += ["compiling 160 leaves: goal", "got"]
    first, rows = next(iter(results.values())), []
    for name in (row.name for row in first[1:]):
        label = f"{name}, gradients more" if name == DIAGNOSTICS else name
        cells, goals = [label, report.reference(first, name).name], GOALS.get(name, Goal())
        for measured, goal, field in zip(results.values(), goals, Goal._fields, strict=False):
            found = cost(measured, name, compiling=field == "deep")
            missed = goal is not None and round(found.median, 2) > goal
            text = report.spread(found)
            cells += ["" if goal is None else f"{goal:.2f}", f"**{text}**" if missed else text]
        rows.append(cells)
    return report.markdown(headings, rows)


# The parts: what each measures, and how its log is shown.


class Part(NamedTuple):
    """Comparisons that share a log."""

    comparisons: dict[str, Callable[[], Any]]
    show: Callable[[dict[str, Any], pathlib.Path], str]


def parts(seconds: float) -> dict[str, Part]:
    table = {
        name: partial(interleave_workload, name, make, seconds) for name, make in WORKLOADS.items()
    }
    sweeps = {
        name: Part(sweep.comparisons(seconds / 4), partial(show_sweep, name))
        for name, sweep in SWEEPS.items()
    }
    return {
        "table": Part(table, show_table),
        "networks": Part(networks.comparisons(networks.CPU, seconds), report.programs),
        "start": Part(startup.comparisons(), startup.show),
        **sweeps,
    }


def interleave_workload(name: str, make: Callable[[], Task], seconds: float) -> list[Timed]:
    return interleave(contestants(make()), seconds, name, COMPILATIONS)


def show_table(results: dict[str, list[Timed]], folder: pathlib.Path) -> str:
    report.draw_bars(results, folder / "table.png")
    return f"{against_goals(results)}\n\n{report.programs(results, folder)}"


def show_sweep(name: str, results: dict[str, list[Timed]], folder: pathlib.Path) -> str:
    label = SWEEPS[name].label
    report.draw_sweep(label, results, folder / f"{name}.png")
    return report.sweep(label, results)


def main() -> None:
    usage = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("table", "networks", "start", "growth", *SWEEPS)
    usage.add_argument("--only", choices=names, nargs="+", default=names, metavar="PART")
    usage.add_argument("--seconds", type=float, default=25, help="per comparison (default 25)")
    usage.add_argument("--again", action="store_true", help="even what the logs have already")
    usage.add_argument("--report", action="store_true", help="show the logs, measure nothing")
    usage.add_argument("--out", type=pathlib.Path, default=RESULTS / jax.default_backend())
    options = usage.parse_args()
    chosen = {*options.only, *(SWEEPS if "growth" in options.only else ())}
    for name, part in parts(options.seconds).items():
        if name in chosen:
            log = options.out / f"{name}.json"
            if not options.report:
                timing.measure(log, part.comparisons, options.again, seconds=options.seconds)
            report.write(log, part.show)


if __name__ == "__main__":
    main()
