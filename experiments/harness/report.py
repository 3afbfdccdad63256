"""What the experiments show: a progress bar, then a table and a figure."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.harness.training import PER_SEED, Budget, Contestant, Measurement, Model, train
from experiments.io.dataset import Dataset
from experiments.io.errors import InputError

FIGURE_TYPES = (".png", ".pdf", ".svg")


class Curves(NamedTuple):
    """All measurements of one optimizer."""

    name: str
    gradient_evaluations: np.ndarray  # per seed, shape (measurements,)
    train_loss: np.ndarray  # shape (measurements, seeds)
    test_loss: np.ndarray  # shape (measurements, seeds)
    test_error: np.ndarray  # percent, shape (measurements, seeds)
    evaluations_per_second: float  # all seeds together, median over training
    validation_loss: np.ndarray  # likewise; NaN of the seeds whose logs do not have it


class Score(NamedTuple):
    """What a task is judged by; the lower the better."""

    name: str  # as in "test error"
    unit: str
    of: Callable[[Any], np.ndarray]  # from Curves or a Measurement
    digits: str = ".2f"


SCORES = {
    "error": Score("error", "%", lambda curves: curves.test_error),
    "nats": Score("loss", "nats per symbol", lambda curves: curves.test_loss, ".3f"),
    "perplexity": Score("perplexity", "", lambda curves: np.exp(curves.test_loss)),
}


def train_all(
    contestants: dict[str, Contestant],
    model: Model,
    dataset: Dataset,
    budget: Budget,
    seeds: int,
    console: Console,
) -> list[Curves]:
    """Trains all contestants, with a progress bar for each."""
    with progress_bar(console) as progress:
        trainings = [
            follow(progress, name, budget, train(contestant, model, dataset, budget, seeds))
            for name, contestant in contestants.items()
        ]
        # One segment of each in turn, so that a busy machine slows all of them alike.
        in_turn = list(zip(*trainings, strict=True))
    return [
        collect(name, measurements)
        for name, measurements in zip(contestants, zip(*in_turn, strict=True), strict=True)
    ]


def collect(name: str, measurements: Iterable[Measurement]) -> Curves:
    """The median ignores the measurement before training, whose rate is not a number."""
    *values, rates, held_out = zip(*measurements, strict=True)
    rate = float(np.median(rates[1:])) if len(rates) > 1 else math.nan
    arrays = [*map(np.array, values)]
    beside = np.full(arrays[1].shape, np.nan) if held_out[0] is None else np.array(held_out)
    return Curves(name, *arrays, rate, beside)


def side_by_side(curves: list[Curves]) -> Curves:
    """Joins the curves of one optimizer over different seeds."""
    rate = float(np.median([curve.evaluations_per_second for curve in curves]))
    joined = {name: np.hstack([getattr(curve, name) for curve in curves]) for name in PER_SEED}
    return curves[0]._replace(evaluations_per_second=rate, **joined)


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=14),
        TextColumn("{task.fields[loss]:>11}"),
        TextColumn("{task.fields[error]:>13}"),
        TextColumn("{task.fields[rate]:>18}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        speed_estimate_period=1e9,  # seconds: from the start, since segments may take minutes
    )


def follow(
    progress: Progress, name: str, budget: Budget, measurements: Iterable[Measurement]
) -> Iterator[Measurement]:
    """Passes the measurements on, and shows each on a bar."""
    total = budget.gradient_evaluations
    task = progress.add_task(name, total=total, loss="", error="", rate="compiling")
    for measurement in measurements:
        done, rate = measurement.gradient_evaluations, measurement.evaluations_per_second
        shown = "compiling" if math.isnan(rate) else f"{rate:,.0f} gradients/s"
        loss = f"loss {measurement.train_loss.mean():.4f}"
        error = f"error {measurement.test_error.mean():.2f} %"
        progress.update(task, completed=done, loss=loss, error=error, rate=shown)
        yield measurement


def standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over the last axis, the seeds. One seed has none: not a number."""
    seeds = values.shape[-1]
    if seeds == 1:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / math.sqrt(seeds)


def results_table(
    curves: list[Curves], title: str, score: Score = SCORES["error"], part: str = "test"
) -> Table:
    """The last measurement of every optimizer: not its best, which would flatter the noisiest."""
    table = Table(title=title, caption=_caption(curves), caption_justify="left")
    table.add_column("optimizer")
    table.add_column(", ".join(filter(None, (f"{part} {score.name}", score.unit))), justify="right")
    table.add_column("training loss", justify="right")
    table.add_column("gradient evaluations/s", justify="right")
    for curve in curves:
        table.add_row(
            curve.name,
            mean_and_spread(score.of(curve)[-1], score.digits),
            mean_and_spread(curve.train_loss[-1], ".2e"),
            f"{curve.evaluations_per_second:,.0f}",
        )
    return table


def _caption(curves: list[Curves]) -> str:
    return (
        f"At the end of training: {_spread(curves)}. Gradient evaluations/s: all seeds together, "
        "without compilation and testing."
    )


def _spread(curves: list[Curves]) -> str:
    counts = [curve.test_error.shape[-1] for curve in curves]
    least, most = min(counts), max(counts)
    if most == 1:
        return "one seed, no spread"
    seeds = f"{most}" if least == most else f"{least} to {most}"
    return f"mean ± standard error over {seeds} seeds"


def mean_and_spread(values: np.ndarray, digits: str) -> str:
    """In the format `digits`, with the standard error if there is one."""
    mean, error = values.mean(), standard_error(values)
    return f"{mean:{digits}}" if np.isnan(error) else f"{mean:{digits}} ± {error:{digits}}"


def markdown(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headings = list(headings)
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"


def save_figure(
    curves: list[Curves],
    title: str,
    path: pathlib.Path,
    score: Score = SCORES["error"],
    part: str = "test",
) -> None:
    """Training loss and score against gradient evaluations, with bands over the seeds."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    for curve in curves:
        for axes, values in ((loss_axes, curve.train_loss), (score_axes, score.of(curve))):
            draw_band(axes, curve.name, curve.gradient_evaluations, values)
    loss_axes.set(ylabel="training loss (mean cross-entropy, nats)")
    if score.name == "error":
        loss_axes.set_yscale("log")
    else:  # of text the loss falls by half at most
        loss_axes.set_ylim(_limits([curve.train_loss for curve in curves]))
    unit = f" ({score.unit})" if score.unit else ""
    limits = _limits([score.of(curve) for curve in curves], percent=score.name == "error")
    score_axes.set(ylabel=f"{part} {score.name}{unit}", ylim=limits)
    for axes in (loss_axes, score_axes):
        axes.set(xlabel="gradient evaluations per seed")
        axes.margins(x=0)
        axes.grid(alpha=0.25)
    spread, counts = _spread(curves), [curve.test_error.shape[-1] for curve in curves]
    if len(set(counts)) > 1:
        spread += " (in brackets)"
        for line, count in zip(loss_axes.lines, counts, strict=True):
            line.set_label(f"{line.get_label()} ({count})")
    loss_axes.legend(frameon=False)
    figure.suptitle(f"{title}: {spread}; lower is better")
    figure.savefig(path, dpi=150)


def _limits(every: list[np.ndarray], percent: bool = False) -> tuple[float, float] | None:
    """Leaves out the untrained start, next to which all ends would look alike."""
    means = np.concatenate([values.mean(axis=-1) for values in every])
    if not np.isfinite(means).all():
        return None  # a training diverged
    least, worst_end = means.min(), max(values[-1].mean() for values in every)
    if percent:
        return 0.8 * least, min(max(2 * worst_end, 1), 100)
    return 0.97 * least, min(1.3 * worst_end, 1.01 * means.max())


TWO_LOOPS = ("Entropy-SGD", "Entropy-Adam", "SNOO", "Parle")
# A method and its entropic form share a colour; two loops are solid.
COLOURS = {
    "SGD": "tab:blue",
    "Adam": "tab:orange",
    "AdamW": "tab:orange",
    "SAM": "tab:green",
    "Parle": "tab:red",
}


def colour(name: str) -> str:
    name = name.removesuffix(" as published")
    return next((own for known, own in COLOURS.items() if name.endswith(known)), "tab:purple")


def draw_band(axes: Axes, name: str, places: Any, values: np.ndarray, **style: Any) -> None:
    """A line for the mean over the seeds, the last axis, in a band of one standard error."""
    mean, error = values.mean(axis=-1), standard_error(values)
    usual = {"color": colour(name), "ls": "-" if name.startswith(TWO_LOOPS) else "--"}
    (line,) = axes.plot(places, mean, label=name, **usual | style)
    axes.fill_between(places, mean - error, mean + error, color=line.get_color(), alpha=0.2, lw=0)


def figure_path(text: str) -> pathlib.Path:
    """The path to write the figure to, checked before training."""
    path = pathlib.Path(text)
    if path.suffix not in FIGURE_TYPES:
        raise InputError(f"--out {text}: the name must end in one of {', '.join(FIGURE_TYPES)}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out {text}: cannot write there; name a file in an existing folder")
    return path
