"""What is trained: the settings that are tried, and the seeds of the best of them."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

from experiments.data.download import SOURCES
from experiments.io.errors import InputError
from experiments.io.files import whole_lines

LENGTH, WIDTH, LAYERS = 32, 64, 2  # symbols seen, width and number of blocks
BATCH = 16  # windows in a gradient of all replicas together; the smallest
INNER_STEPS = 30  # L
ROUNDS = 272  # of L gradients at the smallest batch: 8,160
MEASUREMENTS = 17
SEEDS = 3
REPLICAS = (1, 2, 4, 8)
TIMES = (1, 2, 4, 8, 16)  # the smallest batch
RATES = (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 8e-3, 16e-3, 32e-3)  # AdamW's, alone
INNER_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BATCH_RATES = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)  # of both, at larger batches
OUTER = {1: 0.6, 2: 0.6, 4: 0.7, 8: 0.9}  # rates of the scaling laws, with momentum 0.9
SHORT = (0.7, 0.5)  # outer rate and momentum for few rounds
LARGEST = "top_k=64"
SHAKESPEARE = SOURCES["shakespeare"][0].checksum.removeprefix("sha256:")
WIRES: dict[str, dict[str, Any]] = {
    "bits=8": {"bits": 8},
    "bits=4": {"bits": 4},
    LARGEST: {"top_k": 64},
    f"{LARGEST}, bits=4": {"top_k": 64, "bits": 4},
    "3 fragments": {"fragments": 3},
    "3 fragments, delay=5, blend=0.5": {"fragments": 3, "delay": 5, "blend": 0.5},
    "the same, bits=4": {"fragments": 3, "delay": 5, "blend": 0.5, "bits": 4},
}


class Task(NamedTuple):
    """What is compared."""

    replicas: int  # 0 for AdamW alone, data-parallel on any number of devices
    times: int = 1  # the smallest batch
    wire: str = ""  # one of WIRES

    @property
    def name(self) -> str:
        many = "one worker" if self.replicas == 1 else f"{self.replicas} replicas"
        return f"DiLoCo, {many}" if self.replicas else "AdamW"


class Run(NamedTuple):
    """One training."""

    task: Task
    rate: float  # the peak of AdamW's
    outer: tuple[float, float | None] | None  # rate, Nesterov momentum; None for AdamW alone
    seed: int = 0
    judged: str = "test"


FIRST = [*(Task(m) for m in (0, *REPLICAS)), Task(4, wire=LARGEST)]
BATCHES = [Task(m, times) for times in TIMES[1:] for m in (0, 1)]


def candidates(task: Task, best: dict[Task, Run]) -> list[Run]:
    """Eight settings; at larger batches five rates, with the outer loop of the smallest."""
    pairs: list[Any]
    if task.times > 1:
        pairs = [(rate, best[Task(task.replicas)].outer) for rate in BATCH_RATES]
    elif task.replicas:
        # SparseLoCo has no outer momentum: what is not sent at once takes its place.
        long = (1.0, None) if task.wire else (OUTER[task.replicas], 0.9)
        pairs = [(rate, outer) for rate in INNER_RATES for outer in (long, SHORT)]
    else:
        pairs = [(rate, None) for rate in RATES]
    return [Run(task, rate, outer, judged="validation") for rate, outer in pairs]


def finals(best: dict[Task, Run]) -> list[Run]:
    """All seeds of the best settings; a wire that was not tuned has those of one that was."""
    if missing := [task for task in FIRST + BATCHES if task not in best]:
        raise InputError(f"no settings of {missing[0]} are in the log; run with --tune first")
    four, largest = best[Task(4)], best[Task(4, wire=LARGEST)]
    like = {Task(4, wire=wire): largest if LARGEST in wire else four for wire in WIRES}
    chosen = [run._replace(task=task, judged="test") for task, run in (best | like).items()]
    return [run._replace(seed=seed) for seed in range(SEEDS) for run in chosen]


def read(path: pathlib.Path) -> dict[Run, dict[str, Any]]:
    """All finished runs."""
    found = {}
    for line in whole_lines(path):
        record = json.loads(line)
        task, rate, outer, *rest = record["run"]
        found[Run(Task(*task), rate, outer and tuple(outer), *rest)] = record
    return found


def text_of(record: dict[str, Any]) -> str:
    """The SHA-256 of the text that a run was trained on; the first logs do not say it."""
    return record.get("text", SHAKESPEARE)


def best_of(done: dict[Run, dict[str, Any]]) -> dict[Task, Run]:
    """By the loss at the end, on validation text."""
    best: dict[Task, Run] = {}
    for run, record in done.items():
        if run.judged == "validation":
            rival = best.get(run.task)
            if rival is None or record["loss"][-1] < done[rival]["loss"][-1]:
                best[run.task] = run
    return best
