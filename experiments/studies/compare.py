"""Two trainings seed by seed, from their logs.

    python -m experiments.studies.compare char_lstm-tuned-snoo char_lstm-tuned-adam

Each name stands for the logs in `results/logs/` that begin with it, such as `NAME-0.jsonl`. Prints
both test scores at the end, mean ± standard error, and the 95 % interval of their difference over
the seeds that both have.
"""

from __future__ import annotations

import re

from experiments.harness import report
from experiments.io.errors import InputError, OneLineParser, one_line_errors
from experiments.studies import RESULTS, finished
from experiments.studies.finished import Finished


def find(name: str) -> Finished:
    """The logs of all seeds as one."""
    path = RESULTS / "logs" / f"{name}.jsonl"
    seeds = re.compile(rf"{re.escape(path.stem)}(-[0-9]+)?\.jsonl")
    paths = sorted(one for one in path.parent.glob("*.jsonl") if seeds.fullmatch(one.name))
    if not paths:
        raise InputError(f"{name}: no log {path.parent}/{path.stem}-0.jsonl")
    return finished.read("", paths)


def text(names: list[str], runs: list[Finished]) -> str:
    """A line for each, and one for the first less the second."""
    one, other = runs
    width = max(map(len, (*names, "difference")))
    lines = [f"test {one.score.name}, {one.score.unit}"]
    for name, run in zip(names, runs, strict=True):
        shown = report.mean_and_spread(run.sound().scores[-1], run.score.digits)
        seeds = ", ".join(map(str, run.sound().seeds))
        lost = f", {run.diverged.sum()} diverged" if run.diverged.any() else ""
        lines.append(f"{name:{width}}  {shown}  (seeds {seeds}{lost})")
    return "\n".join([*lines, f"{'difference':{width}}  {one.less(other) or 'no common seed'}"])


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
