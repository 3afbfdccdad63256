"""The weight α of the newest x′ in μ, on three of the paper's tasks.

    python -m experiments.studies.averaging --data-dir DIR [mnistfc lenet char_lstm]

The paper has 0.75, its authors' programs 0.25. Trains the paper's optimizer with the paper's
settings at a short length, with each α from the same seeds, and compares what they end with seed by
seed on held-out data. DIR has the folders `mnist/` and `text/`. An hour on a CPU core; each α that
is finished is kept in `averaging.json`, and the table goes to `averaging.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from experiments import train
from experiments.harness import report, training
from experiments.harness.logs import versions
from experiments.harness.settings import one_of, positive
from experiments.io import files
from experiments.io.errors import OneLineParser, one_line_errors
from experiments.studies import RESULTS, overview, paired, run, solutions, tune

OPTIMIZERS = {"mnistfc": "entropy_sgd", "lenet": "entropy_sgd", "char_lstm": "entropy_adam"}
WEIGHTS = ("0.75", "0.25", "0.1")
EPOCHS = {**run.EPOCHS, "char_lstm": 5}  # effective ones
FILE = RESULTS / "averaging.json"


def scores(workload: str, weight: str, options: argparse.Namespace) -> dict[str, Any]:
    """Of all seeds at the end, on validation data, and what they depend on."""
    flags = [workload, "--optimizer", OPTIMIZERS[workload], "--averaging", weight, "--validation"]
    flags += ["--data-dir", tune.data_folder(options.data_dir, workload), "--measurements", "1"]
    flags += ["--effective-epochs", str(EPOCHS[workload])]
    ready = train.prepare(train.parse_arguments(flags))
    _, end = solutions.train_to_the_end(
        *(ready.contestant, ready.model, ready.dataset, ready.budget, options.seeds),
        map_seeds=training.one_by_one,
    )
    own = report.SCORES[ready.workload.score].of(end).tolist()
    return {"scores": own, "settings": dataclasses.asdict(ready.settings), "versions": versions()}


def table(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for workload, each in found.items():
        usual = np.array(each[WEIGHTS[0]]["scores"])
        for weight, measured in each.items():
            own = np.array(measured["scores"])
            less = paired.difference(own, usual, ".3f") if weight != WEIGHTS[0] else ""
            mean = report.mean_and_spread(own, ".3f")
            rows.append([overview.TITLES[workload], weight, mean, less])
    return report.markdown(["task", "α", "error in % or nats", "less α = 0.75"], rows)


def main() -> None:
    parser = OneLineParser(prog="averaging.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "workloads", nargs="*", type=one_of(tuple(OPTIMIZERS)), metavar="workload",
        help=f"of {', '.join(OPTIMIZERS)}; default all",
    )  # fmt: skip
    parser.add_argument("--data-dir", type=pathlib.Path, required=True, help="with mnist/, text/")
    parser.add_argument("--seeds", type=positive, default=3, help="of each (default 3)")
    options = parser.parse_args()
    for workload in options.workloads or OPTIMIZERS:
        for weight in WEIGHTS:
            found = files.kept(FILE, {})
            own = found.setdefault(workload, {})
            if weight not in own or len(own[weight]["scores"]) != options.seeds:
                own[weight] = scores(workload, weight, options)
                files.write_whole(FILE, json.dumps(found, indent=1) + "\n")
                print(workload, weight, own[weight]["scores"], flush=True)
    text = table(json.loads(FILE.read_text()))
    files.write_whole(RESULTS / "averaging.md", text)
    print(text)


if __name__ == "__main__":
    with one_line_errors("averaging.py"):
        main()
