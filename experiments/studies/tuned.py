"""The tuned runs side by side, a column for each task, from the logs of `run.py`.

    python -m experiments.studies.tuned

Writes `tuned.md`, the table of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from experiments import train
from experiments.harness import report
from experiments.io import files
from experiments.studies import RESULTS, finished, overview
from experiments.studies.finished import Finished

Task = dict[str, Finished]  # by optimizer, AdamW's as Adam's
ROWS = ("sgd", "sam", "adam", "entropy_sgd", "entropy_adam", "snoo")
AS = {"adamw": "adam"}


def tasks() -> list[Task]:
    """In the order of the overview's titles."""
    found: dict[str, Task] = {}
    for group in finished.groups():
        if group[0].variant == "tuned":
            known = [(one.configuration["optimizer"], one) for one in group]
            task = {AS.get(optimizer, optimizer): one for optimizer, one in known}
            found[group[0].configuration["workload"]] = task
    return [found[workload] for workload in overview.TITLES if workload in found]


def score(task: Task, name: str) -> str:
    """At the end; the best of the task in bold."""
    one = task[name]
    shown = f"**{one.end()}**" if one is finished.best(task.values()) else one.end()
    return one.noting_lost(shown)


def less_the_best_baseline(task: Task, name: str) -> str:
    return task[name].less(finished.best(one for one in task.values() if not one.ours))


def tried(task: Task, tuning: list[dict[str, Any]]) -> str:
    """How many settings of each optimizer, and how many of them on more seeds than one."""
    counts = set()
    for one in task.values():
        own = {key: one.configuration[key] for key in ("workload", "optimizer")}
        seeds = [len(each["scores"]) for each in tuning if own.items() <= each.items()]
        counts.add((seeds.count(1), len(seeds) - seeds.count(1)))
    (one_seed, more), *others = counts
    if others:
        raise ValueError(f"{own['workload']}: unequal numbers of settings, {counts}")
    return f"{one_seed}, {more} of them on more seeds" if more else f"{one_seed}"


def table(found: list[Task], tuning: list[dict[str, Any]]) -> str:
    titles = [overview.TITLES[task["sgd"].configuration["workload"]] for task in found]
    units = [f"test {task['sgd'].score.name}, {task['sgd'].score.unit}" for task in found]
    rows = [["judged by", *units]]
    for name in ROWS:
        title = train.NAMES[name] + ("; AdamW for the GPT" if name == "adam" else "")
        rows.append([title, *(score(task, name) for task in found)])
    for name in ROWS:
        if found[0][name].ours:
            cells = (less_the_best_baseline(task, name) for task in found)
            rows.append([f"{train.NAMES[name]} less the best baseline", *cells])
    known = [task["sgd"].configuration for task in found]
    rows.append(["gradients", *(f"{one['gradient_evaluations']:,}" for one in known)])
    rows.append(["seeds", *(str(one["seeds"]) for one in known)])
    rows.append(["settings tried of each", *(tried(task, tuning) for task in found)])
    return report.markdown(["", *titles], rows)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    text = table(tasks(), json.loads((RESULTS / "tuning.json").read_text()))
    files.write_whole(RESULTS / "tuned.md", text)
    print(text)
