"""What a gradient evaluation costs inside Entropy-SGD, against Optax SGD, on this machine.

    python benchmarks/speed.py                 # everything, about ten minutes on two cores
    python benchmarks/speed.py --only table    # or sweeps
    python benchmarks/speed.py --seconds 5     # per comparison, for a quick look

Prints the table, and writes results and plots to benchmarks/results/BACKEND/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import matplotlib as mpl
import rich.table
from rich.console import Console

import programs
from programs import Task, mlp_task
from timing import Maker, Measurement, Program, environment, interleave

mpl.use("Agg")
COMPILATIONS = 3  # of each program of the table
LONGEST_BAR = 6  # in the figure; a longer one is cut and has its number
RESULTS = pathlib.Path(__file__).parent / "results"

WORKLOADS: dict[str, Callable[[], Task]] = {
    "wide: MLP 784-1024-1024-10, batch 128": lambda: mlp_task((784, 1024, 1024, 10), 128),
    "small: MLP 64-32-10, batch 32": lambda: mlp_task((64, 32, 10), 32, updates=50),
    # One update, as in a train step: a loop around it would be compiled too.
    "deep: MLP of 80 layers of width 16, batch 32": lambda: mlp_task((16,) * 81, 32),
}

ENTROPY: dict[str, dict[str, Any]] = {
    "Entropy-SGD, no noise": {"noise_scale": 0},
    "Entropy-SGD, Rademacher": {"noise": "rademacher"},
    "Entropy-SGD, Gaussian": {},
}


def contestants(task: Task) -> list[Maker]:
    """All programs of the table; the first is what the others are divided by."""
    gaussian = "Entropy-SGD, Gaussian"
    return [
        *against_sgd(task),
        partial(programs.entropy, f"{gaussian}, grads given", task, given_grads=True),
        partial(programs.entropy, f"{gaussian}, diagnostics", task, diagnostics=True),
        partial(programs.entropy_streaming, f"{gaussian}, streaming", task),
        partial(programs.plain_langevin, task),
        partial(programs.adam, task),
        partial(programs.sam, task),
        *([partial(torch_sgd, task)] if importlib.util.find_spec("torch") else []),
    ]


def against_sgd(task: Task) -> list[Maker]:
    """SGD, and Entropy-SGD with each kind of noise."""
    ours = [partial(programs.entropy, name, task, **chosen) for name, chosen in ENTROPY.items()]
    return [partial(programs.sgd, task), *ours]


def torch_sgd(task: Task) -> Program:
    """`torch.optim.SGD` on the same network and batch size."""
    import torch

    torch.set_num_threads(environment()["cores"])
    layers: list[Any] = []
    for layer in task.params:
        layers += [torch.nn.Linear(*layer["w"].shape), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    images, labels = jax.tree.map(lambda leaf: leaf[0], task.batches)
    images, labels = torch.tensor(images.tolist()), torch.tensor(labels.tolist())

    def call() -> None:
        for batch, label in zip(images, labels, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch), label).backward()
            optimizer.step()

    return Program("torch.optim.SGD", call, task.inner_steps)


def table(seconds: float, console: Console) -> dict[str, list[Measurement]]:
    """Times every workload and prints its table."""
    results = {}
    for name, make_task in WORKLOADS.items():
        measurements = interleave(contestants(make_task()), seconds, name, COMPILATIONS)
        results[name] = measurements
        print_table(name, measurements, console)
    return results


def print_table(title: str, measurements: list[Measurement], console: Console) -> None:
    shown = rich.table.Table(title=title, title_justify="left")
    for heading in ("program", "µs per gradient", "10-90 %", "ratio to SGD", "quartiles"):
        shown.add_column(heading, justify="left" if heading == "program" else "right")
    for heading in ("trace s", "compile s", "ratio", "temporaries MiB"):
        shown.add_column(heading, justify="right")
    for m in measurements:
        shown.add_row(
            m.name,
            f"{m.median:.1f}",
            f"{m.low:.1f}-{m.high:.1f}",
            f"{m.ratio:.2f}",
            f"{m.ratio_low:.2f}-{m.ratio_high:.2f}",
            f"{m.trace_seconds:.2f}",
            f"{m.compile_seconds:.2f}",
            f"{m.start_ratio:.2f}",
            f"{m.temporary_bytes / 2**20:.1f}",
        )
    console.print(shown)


# How the cost grows: each sweep changes one thing, and times SGD with the three kinds of noise.

Sweep = dict[str, tuple[str, list[int], Callable[[int], Task]]]


def square(parameters: int) -> Task:
    """Two layers, as wide as `parameters` needs, on batches of 32."""
    width = max(4, round((parameters / 2) ** 0.5))
    updates = max(1, 2_000_000 // parameters // 5)
    steps = 20 if parameters < 10**7 else 5
    return mlp_task((width, width, width), 32, updates=min(updates, 50), inner_steps=steps)


def leaves(count: int) -> Task:
    """`count` leaves, weights and biases, of width 16."""
    return mlp_task((16,) * (count // 2 + 1), 32, updates=max(1, 200 // count))


SWEEPS: Sweep = {
    "inner steps": (
        "Langevin steps per update, L",
        [1, 2, 5, 10, 20, 50, 200],
        lambda steps: mlp_task((64, 32, 10), 32, updates=1000 // steps, inner_steps=steps),
    ),
    "parameters": ("parameters", [10**3, 10**4, 10**5, 10**6, 10**7, 10**8], square),
    "leaves": ("leaves of the parameter tree", [2, 10, 50, 200, 1000], leaves),
    "batch": (
        "batch size",
        [8, 32, 128, 512],
        lambda size: mlp_task((784, 256, 256, 10), size, updates=1),
    ),
}


def sweep(name: str, seconds: float) -> dict[int, list[Measurement]]:
    _, values, make_task = SWEEPS[name]
    results = {}
    for value in values:
        results[value] = interleave(against_sgd(make_task(value)), seconds, f"{name} {value}")
        ratios = ", ".join(f"{m.name} {m.ratio:.2f}" for m in results[value][1:])
        print(f"{name} {value}: SGD {results[value][0].median:.1f} µs; {ratios}")
    return results


def plot_sweep(name: str, results: dict[int, list[Measurement]], path: pathlib.Path) -> None:
    import matplotlib.pyplot as plt

    figure, (cost, start) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    values = list(results)
    for index in range(1, len(results[values[0]])):
        rows = [results[value][index] for value in values]
        quartiles = [[m.ratio - m.ratio_low for m in rows], [m.ratio_high - m.ratio for m in rows]]
        cost.errorbar(
            values, [m.ratio for m in rows], quartiles, label=rows[0].name, marker="o", capsize=3
        )
    for index in range(len(results[values[0]])):
        rows = [results[value][index] for value in values]
        seconds = [m.trace_seconds + m.compile_seconds for m in rows]
        start.plot(values, seconds, marker="o", label=rows[0].name, color=f"C{(index - 1) % 10}")
    cost.axhline(1, color="grey", linewidth=0.8)
    cost.set(ylabel="time of a gradient, divided by SGD's", ylim=(0, None))
    start.set(ylabel="seconds to trace and compile", ylim=(0, None))
    for axes in (cost, start):
        axes.set(xscale="log", xlabel=SWEEPS[name][0])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"plot: {path}")


def plot_table(results: dict[str, list[Measurement]], path: pathlib.Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(13, 3.8), layout="constrained", sharey=True
    )
    for panel, (name, measurements) in zip(axes, results.items(), strict=True):
        for m in measurements[::-1]:
            panel.barh(m.name, min(m.ratio, LONGEST_BAR), color="C0")
            if m.ratio > LONGEST_BAR:
                panel.text(
                    LONGEST_BAR, m.name, f"{m.ratio:.0f} ", ha="right", va="center", color="w"
                )
            else:
                panel.plot([m.ratio_low, m.ratio_high], [m.name] * 2, color="black")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(name, fontsize=9, loc="left")
        panel.set_xlabel("time of a gradient, divided by scanned SGD's")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"plot: {path}")


def save(results: dict[Any, list[Measurement]], path: pathlib.Path) -> None:
    rows = {str(key): [m._asdict() for m in rows] for key, rows in results.items()}
    path.write_text(json.dumps({"environment": environment(), "results": rows}, indent=1) + "\n")
    print(f"data: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("table", *(name.split()[0] for name in SWEEPS)))
    parser.add_argument("--seconds", type=float, default=25, help="per comparison (default 25)")
    options = parser.parse_args()
    folder = RESULTS / jax.default_backend()
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=170)
    console.print(environment())
    if options.only in (None, "table"):
        results = table(options.seconds, console)
        save(results, folder / "table.json")
        plot_table(results, folder / "table.png")
    for name in SWEEPS:
        if options.only in (None, name.split()[0]):
            stem = name.replace(" ", "_")
            swept = sweep(name, options.seconds / 4)
            save(swept, folder / f"{stem}.json")
            plot_sweep(name, swept, folder / f"{stem}.png")


if __name__ == "__main__":
    main()
