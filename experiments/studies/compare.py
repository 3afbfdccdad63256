"""Two trainings seed by seed, from their logs.

    python -m experiments.studies.compare char_lstm-tuned-snoo char_lstm-tuned-adam

A name stands for the logs of all its seeds in `results/logs/`, `NAME-0.jsonl` and so on. Prints
both test scores at the end, mean ± standard error, and the 95 % interval of their difference over
the seeds that both have; then how many gradients each takes until the mean over its seeds is as
good as the second's ever is.
"""

from __future__ import annotations

import pathlib
import re

from experiments.io.errors import InputError, OneLineParser, near, one_line_errors
from experiments.studies import RESULTS, finished
from experiments.studies.finished import Finished


def find(name: str) -> Finished:
    """The logs of all seeds as one."""
    known: dict[str, list[pathlib.Path]] = {}
    for path in sorted((RESULTS / "logs").rglob("*.jsonl")):
        place = path.relative_to(RESULTS / "logs").with_suffix("").as_posix()
        for own in {place, re.sub(r"-[0-9]+$", "", place)}:  # one seed, and all
            known.setdefault(own, []).append(path)
    if name not in known:
        raise InputError(f"{name}: no logs of that name in {RESULTS / 'logs'}{near(name, known)}")
    return finished.read("", known[name])


def text(names: list[str], runs: list[Finished]) -> str:
    """A line for each, and one for the first less the second."""
    one, other = runs
    width = max(map(len, (*names, "difference")))
    lines = [f"test {one.score.name}, {one.score.unit}"]
    for name, run in zip(names, runs, strict=True):
        seeds = run.noting_lost(", ".join(map(str, run.sound().seeds)))
        lines.append(f"{name:{width}}  {run.end()}  (seeds {seeds})")
    lines.append(f"{'difference':{width}}  {one.less(other) or 'no common seed'}")
    reached, own = (run.gradients_to_best_of(other) for run in runs)
    return "\n".join([*lines, f"gradients to the second's best: {reached}, itself {own}"])


def main() -> None:
    parser = OneLineParser(prog="compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs=2, help="such as further/char_lstm-adam-b1-0.9")
    names = parser.parse_args().names
    runs = [find(name) for name in names]
    tasks = {run.configuration["workload"] for run in runs}
    if len(tasks) > 1:
        raise InputError(f"{' and '.join(sorted(tasks))}: runs of one task can be compared")
    print(text(names, runs))


if __name__ == "__main__":
    with one_line_errors("compare.py"):
        main()
