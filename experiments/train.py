"""Trains one network with one optimizer: the paper's five experiments, digits and a small GPT.

    python -m experiments.train mnistfc --optimizer entropy_sgd --data-dir DIR --seeds 5
    python -m experiments.train char_lstm --optimizer adam --download --validation
    python -m experiments.train digits --optimizer sam --learning-rate 0.05 --rho 0.1
    python -m experiments.train digits --optimizer sam --help

The folder that `--out` names gets `metrics.jsonl`, TensorBoard's files, `curves.png` and
checkpoints. The same command resumes where it was stopped. All settings are the paper's for the
workload and optimizer, as `workloads/` says, unless a flag says otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.io.errors import InputError, one_line_errors

with one_line_errors("train.py"):
    import jax
    import numpy as np
    from rich.console import Console

    from experiments import workloads
    from experiments.arguments import in_use, parse_arguments
    from experiments.checkpoints import Checkpoints
    from experiments.data import download
    from experiments.harness import contestants, evaluation, logs, report, settings, training
    from experiments.io.dataset import Dataset
    from experiments.io.files import made

NAMES = {
    "entropy_sgd": "Entropy-SGD",
    "entropy_adam": "Entropy-Adam",
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "sam": "SAM",
    "snoo": "SNOO",
    "parle": "Parle",
    "sgld": "SGLD",
}


class Run(NamedTuple):
    """All that a training needs, checked before anything is compiled."""

    workload: workloads.Workload
    settings: settings.Settings
    dataset: Dataset
    model: evaluation.Model
    contestant: training.Contestant
    budget: training.Budget


def prepare(options: argparse.Namespace) -> Run:
    """Loads the data, and builds network and optimizer."""
    workload = workloads.get(options.workload)
    chosen = settings.override(workload.settings[options.optimizer], options)
    dataset, classes = workload.load(request(options, workload, chosen))
    dataset = alter(dataset, options.examples, options.label_noise)
    contestant, budget = contestants.prepare(
        options.optimizer, chosen, len(dataset.train_labels), options.measurements
    )
    if options.prune:
        contestant = judged_pruned(contestant, options.prune)
    model = workload.make_model(chosen, dataset, classes)
    if chosen.sampling == "streams" and model.carry is None:
        raise InputError(f"--sampling streams: the network of {options.workload} has no state")
    return Run(workload, chosen, dataset, model, contestant, budget)


def request(
    options: argparse.Namespace, workload: workloads.Workload, chosen: settings.Settings
) -> workloads.Request:
    """Where the data are; downloaded if that was asked for."""
    directory, source = options.data_dir, options.download or workload.source
    if source and not fits(source, workload, options):
        raise InputError(f"--download {source}: these are not the files of {options.workload}")
    text = options.text or (download.SOURCES[source][0].name if source else "")
    if options.download is not None and source:
        directory = download.fetch(source, directory)
    elif source and directory is None and options.text is None:
        raise InputError(
            f"{options.workload} needs --data-dir, the folder of its files, or --download"
        )
    return workloads.Request(directory, text, options.validation, chosen)


def fits(source: str, workload: workloads.Workload, options: argparse.Namespace) -> bool:
    """Whether a workload reads these files: they have the usual names, or any text will do."""
    names, usual = ([file.name for file in download.SOURCES[s]] for s in (source, workload.source))
    is_text = all(name.endswith(".txt") for name in names)
    return names == usual or (is_text and options.workload in settings.CHARACTERS.owners)


def alter(dataset: Dataset, examples: int | None, label_noise: float) -> Dataset:
    """Fewer training examples, or some of them with labels drawn at random from all labels."""
    if examples is not None and examples > len(dataset.train_labels):
        raise InputError(f"--examples {examples}: there are {len(dataset.train_labels):,}")
    inputs, labels = dataset.train_inputs[:examples], dataset.train_labels[:examples]
    if label_noise:
        random = np.random.default_rng(0)
        drawn = random.permutation(labels.ravel()).reshape(labels.shape)
        labels = np.where(random.random(labels.shape) < label_noise, drawn, labels)
    return dataset._replace(train_inputs=inputs, train_labels=labels)


def judged_pruned(contestant: training.Contestant, fraction: float) -> training.Contestant:
    """It trains as before."""
    whole = contestant.reported
    return contestant._replace(reported=lambda params: evaluation.prune(whole(params), fraction))


def describe(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    """All that the numbers depend on; a training is continued only if this is the same."""
    data = 0
    for array in filter(lambda part: part is not None, run.dataset):
        data = zlib.crc32(np.ascontiguousarray(array), data)
    return {
        "workload": options.workload,
        "optimizer": options.optimizer,
        **dataclasses.asdict(run.settings),
        "seeds": options.seeds,
        "first_seed": options.first_seed,
        "one_by_one": one_by_one(options, run),
        "measurements": options.measurements,
        "part": "test" if options.validation is None else "validation",
        "examples": len(run.dataset.train_labels),
        "label_noise": options.label_noise,
        "prune": options.prune,
        "data": f"{data:08x}",
        "gradient_evaluations": run.budget.gradient_evaluations,
    }


def one_by_one(options: argparse.Namespace, run: Run) -> bool:
    given = options.one_by_one
    return run.workload.one_by_one if given is None else given


def map_seeds(options: argparse.Namespace, run: Run) -> Callable[..., Any]:
    return training.one_by_one if one_by_one(options, run) else jax.vmap


class Announced(Checkpoints):
    """Says what the training resumes from."""

    def __init__(
        self,
        folder: pathlib.Path,
        configuration: dict[str, Any],
        log: logs.Log,
        console: Console,
    ) -> None:
        super().__init__(folder, configuration)
        self.folder, self.log, self.console = folder, log, console

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint, as before."""
        restored = super().restore(like)
        if restored is not None:
            count = f"{self.log.measured[restored[0]]:,} of {self.log.measured[-1]:,}"
            self.console.out(
                f"Goes on from {self.folder / str(restored[0])}, after {count} gradient evaluations"
            )
        elif self.log.finished:
            self.console.out("It had ended, and its checkpoints are gone: shown from its log")
        else:
            before = self.log.set_aside()
            kept = f"; what was measured before is kept in {before.name}" if before else ""
            self.console.out(f"Starts from the beginning, in {self.folder.parent}{kept}")
        return restored


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    folder = pathlib.Path(options.out or f"runs/{options.workload}-{options.optimizer}")
    with made(folder, "--out"):
        run = prepare(options)
        configuration = describe(options, run)
        log = logs.Log(folder, configuration, run.budget.measured)
    console = Console(highlight=False)
    console.out("Settings:", in_use(run.settings, options.workload, options.optimizer))
    with (
        Announced(folder / "checkpoints", configuration, log, console) as checkpoints,
        report.progress_bar(console) as progress,
    ):
        measurements = training.train(
            run.contestant, run.model, run.dataset, run.budget, options.seeds, checkpoints,
            map_seeds(options, run), options.first_seed,
        )  # fmt: skip
        logged = log.follow(measurements)
        for _ in report.follow(progress, NAMES[options.optimizer], run.budget, logged):
            pass
    show(folder, console)


def show(folder: pathlib.Path, console: Console) -> None:
    """The table and the figure, from the log alone: also for a training that had ended before."""
    configuration, measurements, _ = logs.read(folder)
    curves = [report.collect(NAMES[configuration["optimizer"]], measurements)]
    count = configuration["gradient_evaluations"]
    title = f"{configuration['workload']}, {count:,} gradient evaluations per seed"
    score = report.SCORES[workloads.get(configuration["workload"]).score]
    figure = folder / "curves.png"
    console.print(report.results_table(curves, title, score, configuration["part"]))
    report.save_figure(curves, title, figure, score, configuration["part"])
    console.out(f"Log, curves and checkpoints: {folder}")


if __name__ == "__main__":
    with one_line_errors("train.py"):
        main()
