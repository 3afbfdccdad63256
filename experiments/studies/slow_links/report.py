"""Tables and figures from the log."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness.report import draw_band, markdown, mean_and_spread
from experiments.io.errors import InputError
from experiments.studies.paired import difference
from experiments.studies.slow_links.plan import (
    INNER_STEPS,
    LARGEST,
    REPLICAS,
    SEEDS,
    TIMES,
    WIRES,
    Run,
    Task,
)

Done = dict[Run, dict[str, Any]]
LINKS = (0.1, 1.0, 10.0, 100.0)  # Gbit/s
FEW = Task(4, wire=f"{LARGEST}, bits=4")
DEVICES = 8  # of data-parallel AdamW in the figure of time
# By replicas; told apart by colour-blind readers too (Okabe and Ito).
COLOURS = {0: "#222222", 1: "#e69f00", 2: "#56b4e9", 4: "#d55e00", 8: "#0072b2"}
# The loss less data-parallel training's, percent: arXiv 2503.09799, Table 4, 35M and 2.4B.
PUBLISHED = {1: "−0.1, −0.4", 2: "+0.7, −0.1", 4: "+2.0, +0.3", 8: "+3.9, +1.1"}


def bytes_exchanged(task: Task) -> float:
    """By each device, for each parameter and gradient, as counted in the compiled programs."""
    if task.replicas == 0:
        return 8  # an all-reduce counts twice
    if task.replicas == 1:
        return 0
    options = WIRES.get(task.wire, {})
    bits, top_k = options.get("bits"), options.get("top_k")
    if top_k:
        values = 4 * top_k if bits is None else bits / 8 * top_k + 4
        return task.replicas * (values + 2 * top_k) / 4096 / INNER_STEPS
    return (8 if bits is None else 2 * (bits / 8 + 4 / 64)) / INNER_STEPS


class Way:
    """All seeds of one way to train."""

    def __init__(self, done: Done, task: Task):
        """Those on test text."""
        self.runs = sorted(
            (run for run in done if run.task == task and run.judged == "test"),
            key=lambda run: run.seed,
        )
        if len(self.runs) < SEEDS:
            raise InputError(f"{task.name}: {len(self.runs)} of {SEEDS} seeds are in the log")
        self.records = [done[run] for run in self.runs]
        self.task = task
        self.gradients = np.array(self.records[0]["gradients"])
        self.losses = np.array([record["loss"] for record in self.records])

    @property
    def last(self) -> np.ndarray:
        return self.losses[:, -1]

    @property
    def megabytes(self) -> np.ndarray:
        each = bytes_exchanged(self.task) * self.records[0]["parameters"]
        return self.gradients * each / 1e6

    def seconds(self, second: float, link: float) -> np.ndarray:
        """If a gradient of the whole batch takes `second` on one device, at `link` Gbit/s."""
        devices = self.task.replicas or DEVICES
        return self.gradients * second / devices + 8e-3 * self.megabytes / link

    def cells(self) -> list[str]:
        """The settings, and the loss at the end."""
        rate, outer = self.runs[0].rate, self.runs[0].outer
        settings = f"{rate:g}" + (f"; {outer[0]:g}, {outer[1] or 'none'}" if outer else "")
        return [settings, mean_and_spread(self.last, ".3f")]

    def less(self, other: Way) -> list[str]:
        """Of the losses at the end, with its 95 % interval; and in percent of the other's."""
        percent = 100 / other.last.mean()
        return [
            difference(self.last, other.last, ".3f"),
            difference(percent * self.last, percent * other.last, ".1f"),
        ]


def tables(done: Done) -> str:
    """Replicas, batches, bytes and time."""
    adamw, *ways = (Way(done, Task(m)) for m in (0, *REPLICAS))
    loss, settings = f"test loss, nats, {SEEDS} seeds", "rate; outer rate, momentum"
    replicas = [[adamw.task.name, *adamw.cells(), "", "", "", f"{adamw.megabytes[-1]:,.0f}"]]
    for way in ways:
        published = PUBLISHED[way.task.replicas]
        cells = [*way.less(adamw), published, f"{way.megabytes[-1]:,.0f}"]
        replicas.append([way.task.name, *way.cells(), *cells])
    batches = []
    for times in TIMES:
        one, two = (Way(done, Task(m, times)) for m in (0, 1))
        cells = [*one.cells(), *two.cells(), two.less(one)[0]]
        batches.append([str(times), f"{one.gradients[-1]:,}", *cells])
    wires, four = [], Way(done, Task(4))
    for way in (Way(done, Task(4, wire=wire)) for wire in WIRES):
        share = bytes_exchanged(way.task) / bytes_exchanged(four.task)
        less, more = way.less(four)[0], way.less(adamw)[1]
        wires.append([f"`{way.task.wire}`", *way.cells(), less, more, f"{share:.3f}"])
    clock, second = [], second_of(adamw)
    for way in (adamw, *ways[1:], Way(done, FEW)):
        name = f"AdamW on {DEVICES} devices" if way is adamw else way.task.name
        name += f", {way.task.wire}" if way.task.wire else ""
        clock.append([name, *(f"{way.seconds(second, link)[-1]:,.1f}" for link in LINKS)])
    less, columns = "less AdamW's, 95 %", [settings, loss]
    return "\n".join(
        (
            markdown(["", *columns, less, "in percent", "published %", "MB"], replicas),
            markdown(
                ["batch", "gradients", "AdamW's rate", loss, f"DiLoCo's {settings}", loss, less],
                batches,
            ),
            markdown(
                [
                    *("4 replicas with", *columns, "less theirs without, 95 %"),
                    *("less AdamW's, in percent", "share of their bytes"),
                ],
                wires,
            ),
            markdown(["seconds", *(f"{link:g} Gbit/s" for link in LINKS)], clock),
        )
    )


def second_of(adamw: Way) -> float:
    """Of a gradient of the whole batch on one core, the least disturbed."""
    return min(record["seconds of a gradient"] for record in adamw.records)


def draw(done: Done, folder: pathlib.Path) -> None:
    """Three figures: gradients and bytes, time, batches."""
    adamw, ways = Way(done, Task(0)), [Way(done, Task(m)) for m in REPLICAS]
    few = Way(done, FEW)
    named = [(way, way.task.name, COLOURS[way.task.replicas], "-") for way in (adamw, *ways)]
    named.append((few, "4 replicas, top_k=64, bits=4", COLOURS[4], "--"))

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for way, name, color, style in named:
        draw_band(left, name, way.gradients, way.losses.T, color=color, ls=style)
        if way.megabytes[-1]:
            draw_band(right, name, way.megabytes, way.losses.T, color=color, ls=style)
    left.set(xlabel="gradients of the whole batch", ylabel="test loss, nats per character")
    left.set_title("for each gradient: down is better", loc="left", fontsize=11)
    right.set(xlabel="megabytes exchanged by each device", xscale="log")
    right.set_title("for each byte: left and down is better", loc="left", fontsize=11)
    ends = [way.last.mean() for way, *_ in named]
    left.set_ylim(min(ends) - 0.03, min(ends) + 0.75)
    left.legend(frameon=False, fontsize=9)
    arrow(right, adamw, ways[REPLICAS.index(2)])
    save(figure, (left, right), folder / "slow_links.png")

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels, second = figure.subplots(1, len(LINKS), sharey=True), second_of(adamw)
    for axes, link in zip(panels, LINKS, strict=True):
        for way, name, color, style in named:
            if way.task.replicas != 1:
                name = f"AdamW on {DEVICES}" if way is adamw else name
                seconds = way.seconds(second, link)
                draw_band(axes, name, seconds, way.losses.T, color=color, ls=style)
        axes.set(xscale="log", xlabel="simulated seconds (← better)")
        axes.set_title(f"{link:g} Gbit/s", loc="left", fontsize=11)
    panels[0].set(ylabel="test loss, nats per character", ylim=left.get_ylim())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    save(figure, panels, folder / "slow_links_clock.png")

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for replicas in (0, 1):
        row = [Way(done, Task(replicas, times)) for times in TIMES]
        losses = np.array([way.last for way in row])
        colour = COLOURS[replicas]
        draw_band(axes, row[0].task.name, TIMES, losses, color=colour, ls="-", marker="o")
    axes.set(xscale="log", xticks=TIMES, xticklabels=TIMES)
    axes.minorticks_off()
    axes.set(xlabel="times the batch, at equal tokens", ylabel="test loss, nats per character")
    axes.set_title("down is better", loc="left", fontsize=11)
    axes.legend(frameon=False)
    save(figure, [axes], folder / "slow_links_batch.png")


def arrow(axes: Axes, costly: Way, cheap: Way) -> None:
    """Between the bytes at which both reach the worse of their last losses."""
    losses = [way.losses.mean(axis=0) for way in (costly, cheap)]
    level = max(loss.min() for loss in losses)
    start, end = (
        float(np.interp(-level, -loss, way.megabytes))
        for loss, way in zip(losses, (costly, cheap), strict=True)
    )
    axes.annotate("", (end, level), (start, level), arrowprops={"arrowstyle": "->"})
    text = f"{start / end:.0f} × fewer"
    axes.text(math.sqrt(start * end), level, text, ha="center", va="bottom")


def save(figure: Figure, panels: Any, path: pathlib.Path) -> None:
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
