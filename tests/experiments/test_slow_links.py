"""The study of slow links: equal tries for all, bytes as in compiled programs, its tables."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest

from experiments.data.text import Text
from experiments.harness import cores
from experiments.io.errors import InputError
from experiments.studies.slow_links import plan, report, training
from experiments.studies.slow_links.plan import BATCHES, FIRST, INNER_STEPS, WIRES, Run, Task
from tests.experiments.test_longer_studies import run

ROOT = pathlib.Path(__file__).parents[2]
BEST = {
    task: Run(task, 2e-3, (0.7, 0.5) if task.replicas else None, judged="validation")
    for task in [*FIRST, *BATCHES]
}


def write(log: pathlib.Path, losses: dict[Run, float]) -> None:
    with log.open("w") as stream:
        for run, loss in losses.items():
            times = run.task.times
            record: dict[str, Any] = {"run": run, "parameters": 10**6}
            record |= {"seconds of a gradient": 0.008, "loss": [2 * loss, loss]}
            record["gradients"] = [500 // times, 1000 // times]
            stream.write(json.dumps(record) + "\n")


def test_all_are_tried_as_often() -> None:
    for tasks, tries in ((FIRST, 8), (BATCHES, 5)):
        for task in tasks:
            assert len(set(plan.candidates(task, BEST))) == tries
    rates = [{run.rate for run in plan.candidates(Task(m, 4), BEST)} for m in (0, 1)]
    assert rates[0] == rates[1]


def test_the_best_is_the_last_loss_and_a_cut_line_is_left_out(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log.jsonl"
    runs = plan.candidates(Task(2), {})
    write(log, {run: abs(number - 5) + 1.5 for number, run in enumerate(runs)})
    with log.open("a") as stream:
        stream.write(json.dumps({"run": runs[0], "loss": [0.0]})[:-3])
    done = plan.read(log)
    assert list(done) == runs
    assert plan.best_of(done) == {Task(2): runs[5]}


def test_a_log_goes_on_after_a_cut_line_and_with_its_own_text_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, runs = tmp_path / "log.jsonl", plan.candidates(Task(2), {})[:2]
    for name in ("one", "other"):
        (tmp_path / f"{name}.txt").write_text(100 * f"{name} text. ")
    monkeypatch.setattr(training, "follow", without_training)
    training.run_all(runs[:1], str(tmp_path / "one.txt"), log, 1)
    with log.open("a") as stream:
        stream.write('{"run": [[2')
    training.run_all(runs, str(tmp_path / "one.txt"), log, 1)
    assert list(plan.read(log)) == runs
    with pytest.raises(
        InputError, match=r"other\.txt is not the text of .*log\.jsonl: give another"
    ):
        training.run_all(runs, str(tmp_path / "other.txt"), log, 1)


def without_training(run: Run, path: str) -> dict[str, Any]:
    return {"run": run, "loss": [1.0], "text": training.checksum(path)}


def test_judging_is_no_part_of_the_seconds_of_a_gradient(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by 30 s in each segment, by 1,000 s while the network is judged."""
    clock = [0.0]

    def jit(function: Any = None, **_: Any) -> Any:
        if function is None:
            return jit
        if function.__name__ not in ("segment", "judge"):
            return function

        def call(params: Any, state: Any, *first: Any) -> Any:
            clock[0] += 30 if first else 1_000
            return (params, state) if first else 1.0

        return call

    monkeypatch.setattr(training.jax, "jit", jit)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(training, "ROUNDS", 3)
    monkeypatch.setattr(training, "MEASUREMENTS", 3)
    (tmp_path / "a.txt").write_text(100 * "some text. ")
    record = training.follow(Run(Task(0), 1e-3, None), str(tmp_path / "a.txt"))
    assert record["gradients"] == (30, 60, 90)
    assert record["seconds of a gradient"] == 1.0


def test_what_was_not_tuned_has_the_settings_of_its_like() -> None:
    runs = plan.finals(BEST | {Task(4, wire=plan.LARGEST): Run(Task(4), 9e-3, (1.0, None))})
    assert len(runs) == len(set(runs)) == plan.SEEDS * (len(FIRST) + len(BATCHES) + len(WIRES) - 1)
    rates = {run.task.wire: run.rate for run in runs if run.task.replicas == 4}
    assert {wire for wire, rate in rates.items() if rate == 9e-3} == {
        wire for wire, options in WIRES.items() if "top_k" in options
    }


def test_bytes_are_those_of_the_compiled_programs() -> None:
    counted = (ROOT / "benchmarks/results/cpu/communication.txt").read_text().splitlines()
    parameters = int(counted[0].split()[0].replace(",", ""))
    found = next(json.loads(line) for line in counted if line.startswith("{"))
    tasks = {f"DiLoCo, {wire}": Task(8, wire=wire) for wire in WIRES if "fragment" not in wire}
    tasks |= {"data-parallel SGD": Task(0), "DiLoCo": Task(8)}
    compared = 0
    for name, task in tasks.items():
        if name in found["bytes"]:
            between = 1 if task.replicas == 0 else INNER_STEPS / found["inner_steps"]
            ours = report.bytes_exchanged(task) * between * parameters
            # There the numbers are padded to whole blocks, here they are many.
            assert ours == pytest.approx(found["bytes"][name], rel=0.08), name
            compared += 1
    assert compared == 6


def test_tables_and_figures(tmp_path: pathlib.Path) -> None:
    losses = {
        run: 1.5 + 0.1 * run.task.replicas + 0.01 * run.seed + (0.02 if run.task.wire else 0)
        for run in plan.finals(BEST)
    }
    write(tmp_path / "log.jsonl", losses)
    done = plan.read(tmp_path / "log.jsonl")
    shown = report.tables(done)
    assert (
        "| DiLoCo, 2 replicas | 0.002; 0.7, 0.5 | 1.710 ± 0.006 | +0.200 ± 0.000 | +13.2 ± 0.0 |"
        in shown
    )
    assert "| 16 | 62 | 0.002 | 1.510 ± 0.006 |" in shown
    assert (
        "| `bits=8` | 0.002; 0.7, 0.5 | 1.930 ± 0.006 | +0.020 ± 0.000 | +27.8 ± 0.0 | 0.266 |"
        in shown
    )
    # 1,000 gradients of 8 ms on 8 devices, and 8 bytes for each of a million parameters.
    assert f"| AdamW on 8 devices | {1 + 1000 * 8e6 * 8 / 1e8:.1f} |" in shown
    assert f"| DiLoCo, 4 replicas | {2 + 1000 / 30 * 8e6 * 8 / 1e8:.1f} |" in shown
    report.draw(done, tmp_path)
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_seed_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "log.jsonl", dict.fromkeys(plan.finals(BEST)[1:], 1.5))
    with pytest.raises(InputError, match="AdamW: 2 of 3 seeds"):
        report.tables(plan.read(tmp_path / "log.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--text FILE is needed, or --table"),
        (["--text", "nothing.txt", "--tune"], "no nothing.txt or nothing.txt.gz in ."),
        (["--table"], "no settings of Task(replicas=0, times=1, wire='') are in the log; "
         "run with --tune first"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    done = run(tmp_path, "slow_links", *arguments, "--log", "log.jsonl")
    assert done.returncode == 2
    assert done.stderr == f"slow_links: error: {message}\n"


def test_more_jobs_than_cores_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 3})
    assert cores.for_jobs(5) == [3, 5, 3, 5, 3]


def test_where_a_process_cannot_choose_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert cores.for_jobs(2) == [None, None]
    cores.pin(None)


@pytest.mark.slow
@pytest.mark.parametrize("task", [Task(0, 2), Task(2), *(Task(4, wire=w) for w in WIRES)], ids=str)
def test_each_learns_a_text(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ROUNDS", 6 * task.times)
    monkeypatch.setattr(training, "MEASUREMENTS", 3)
    letters = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 400, np.uint8)
    text = Text(letters.astype(np.int32) - 32, letters[:900].astype(np.int32) - 32, 96)
    outer = (0.7, 0.5) if task.replicas else None
    found = list(training.train(Run(task, 8e-3, outer), text))
    assert [count for count, *_ in found] == [60, 120, 180]
    assert found[-1][1] < min(2.0, found[0][1])  # log 28 = 3.3 for a guess
