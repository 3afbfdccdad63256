"""AdamW and DiLoCo on a character GPT: more replicas, larger batches, fewer bytes.

    python -m experiments.studies.slow_links --text shakespeare.txt --tune --jobs 2
    python -m experiments.studies.slow_links --text shakespeare.txt --jobs 2
    python -m experiments.studies.slow_links --table

The first tries eight settings of each (five at larger batches) at full length on validation text;
the second trains three seeds with the best of them and judges them on test text. Both write each
finished run to a log at once, and go on where they were stopped. Then, as the third, the tables and
figures are made from the log. All runs see the same number of tokens. Replicas are a `vmap` here,
so that one machine will do; on devices of their own the same step stands under `shard_map`.
"""

from __future__ import annotations

import pathlib

from experiments.io.errors import InputError, OneLineParser, one_line_errors

with one_line_errors("slow_links"):
    from experiments.harness.settings import positive
    from experiments.io.files import write_whole
    from experiments.studies import RESULTS
    from experiments.studies.slow_links import report, training
    from experiments.studies.slow_links.plan import (
        BATCHES,
        FIRST,
        best_of,
        candidates,
        finals,
        read,
    )

DOCS = RESULTS.parents[1] / "docs"


def main() -> None:
    parser = OneLineParser(prog="slow_links", description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="any text file, plain or .gz")
    parser.add_argument("--tune", action="store_true", help="try the settings on validation text")
    parser.add_argument("--jobs", type=positive, default=1, help="trainings at a time")
    parser.add_argument("--log", type=pathlib.Path, default=RESULTS / "slow_links.jsonl")
    parser.add_argument("--figures", type=pathlib.Path, default=DOCS, help="their folder")
    parser.add_argument("--table", action="store_true", help="only the tables and figures")
    options = parser.parse_args()
    if not options.table and options.text is None:
        raise InputError("--text FILE is needed, or --table")
    if options.tune:
        for tasks in (FIRST, BATCHES):
            best = best_of(read(options.log))
            runs = [run for task in tasks for run in candidates(task, best)]
            training.run_all(runs, options.text, options.log, options.jobs)
        return
    runs = finals(best_of(read(options.log)))
    if not options.table:
        training.run_all(runs, options.text, options.log, options.jobs)
    known = read(options.log)
    done = {run: known[run] for run in runs if run in known}  # none of settings once the best
    print(shown := report.tables(done))
    write_whole(options.log.with_suffix(".md"), shown)
    report.draw(done, options.figures)


if __name__ == "__main__":
    with one_line_errors("slow_links"):
        main()
