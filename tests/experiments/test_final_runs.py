"""The table of the final runs."""

from __future__ import annotations

import argparse
import pathlib
import queue
import re
import shutil

import numpy as np
import pytest

from experiments.harness import report
from experiments.harness.report import SCORES, Curves
from experiments.io.errors import InputError
from experiments.studies import RESULTS, compare, paired, run, table1, tuned
from experiments.studies import finished as finished_runs
from experiments.studies.finished import Finished


def finished(name: str, errors: list[list[float]]) -> Finished:
    """Measured after 0, 100, 200 gradients and so on, a column for each seed."""
    scores = np.array(errors)
    counts, lacking = 100 * np.arange(len(scores)), np.full(scores.shape, np.nan)
    curves = Curves(name, counts, scores / 10, scores / 9, scores, 50.0, lacking)
    configuration = {"workload": "mnistfc", "seeds": scores.shape[1], "gradient_evaluations": 300}
    seeds = list(range(scores.shape[1]))
    return Finished(configuration, seeds, "paper", curves, SCORES["error"], 12.0)


ADAM = finished("Adam", [[90, 90], [3, 5], [2, 2.2], [2.4, 2.4]])


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([[90, 90], [2, 2.2], [2, 2], [1, 1]], "100"),  # the mean over the seeds counts
        ([[90, 90], [1, 4], [3, 3], [1, 1]], "300"),
        ([[90, 90], [1, 4], [3, 3], [2, 3]], "never"),
    ],
)
def test_gradients_to_the_baselines_best(errors: list[list[float]], expected: str) -> None:
    ours = finished("Entropy-SGD", errors)
    assert ours.gradients_to_best_of(ADAM) == expected
    assert ADAM.gradients_to_best_of(ADAM) == "200"
    heading, _, *rows = run.table([[ADAM, ours]]).splitlines()
    assert len({line.count("|") for line in (heading, *rows)}) == 1
    assert f" {expected} (200) " in rows[1]
    assert "(200)" not in rows[0]


def test_a_mean_that_is_lower_by_rounding_is_as_good() -> None:
    """270 of 50,000 images twice, as the float32 of the logs have them."""
    counts = np.array([[5000] * 5, [52, 57, 53, 52, 56], [54, 56, 54, 52, 54]])
    errors = np.array(counts / 100 - 1e-8 * (counts == 54), np.float32).astype(float)
    one = finished("Adam", errors.tolist())
    assert errors[2].mean() < errors[1].mean()
    assert one.gradients_to_best_of(one) == "100"


def test_text_read_in_order_compares_at_the_ends_of_passes() -> None:
    """A pass is 400 gradients here, so of 0 to 900 only 0, 400 and 800 count."""
    errors = [[9.0], [4], [4], [1], [6], [3], [3], [1], [5], [2]]
    in_order = {"sampling": "streams", "batch_size": 2, "examples": 800}
    one = finished("SGD", errors)
    in_streams = one._replace(configuration=one.configuration | in_order)
    assert one.gradients_to_best_of(one) == "300"
    assert in_streams.gradients_to_best_of(in_streams) == "800"
    assert one.best(one.scores) == 1
    assert in_streams.best(one.scores) == 5
    by_images = finished("Adam", [[90.0], [7], [6], [6.5]])
    assert in_streams.gradients_to_best_of(by_images) == "400"


def test_a_seed_that_diverges_is_counted_and_left_out() -> None:
    one = finished("SGD", [[90, 90, 90], [4, 5, 6], [2, 99, 3]])
    assert one.sound().scores.tolist() == [[90, 90], [4, 6], [2, 3]]
    assert "| 3, 1 diverged | 2.50 ± 0.50 % |" in run.table([[one]])
    assert one.less(finished("Adam", [[90, 90, 90], [1, 3, 1.5]])) == "+1.25 ± 3.18"
    nothing_left = finished("SGD", [[90.0], [np.nan]])
    assert nothing_left.sound() is nothing_left
    assert ADAM.sound() is ADAM


def test_runs_of_unequal_seeds_are_compared_on_those_of_both() -> None:
    """0.2, 0.4 and 0.6 less; and 2, 4, 6 have 4 ± 2 × 4.3027 / √3, of Student's table."""
    few = finished("Entropy-SGD", [[90, 90, 90], [1.8, 3.6, 5.4]])
    more = finished("Adam", [[90, 90, 90, 90], [2, 4, 6, 9]])
    assert few.less(more) == "-0.40 ± 0.50"
    shifted = more._replace(seeds=[9, 0, 1, 2])  # 2.2, 2.4 and 3.6 less: their deviation is 0.757
    assert few.less(shifted) == "-2.73 ± 1.88"
    assert compare.text(["few", "shifted"], [few, shifted]).splitlines() == [
        "test error, %",
        "few         3.60 ± 1.04  (seeds 0, 1, 2)",
        "shifted     5.25 ± 1.49  (seeds 9, 0, 1, 2)",
        "difference  -2.73 ± 1.88",
        "gradients to the second's best: 100, itself 100",
    ]
    assert few.less(more._replace(seeds=[5, 6, 7, 8])) == ""
    assert paired.ends(np.array([2.0, 4.0, 6.0]), ".2f") == "-0.97 to 8.97"
    assert paired.ends(np.array([2.0]), ".2f") == ""


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([2, 4, 6], "reproduced"),  # -0.97 to 8.97
        ([8.8, 9.0, 9.2], "higher"),  # 8.50 to 9.50
        ([8.0, 9.0, 10.0], "reproduced"),  # 6.52 to 11.48
        ([0.9, 1.0, 1.1], "lower"),
        ([7.1], "differs"),
        ([6.9], "agrees"),
    ],
)
def test_reproduced_means_that_the_intervals_overlap(scores: list[float], expected: str) -> None:
    assert table1.verdict(np.array(scores), (6.0, 1.0)) == expected


def test_what_the_paper_does_not_have_is_shown_without_a_verdict() -> None:
    adam, sgd = table1.rows({("mnistfc", "adam"): ADAM, ("mnistfc", "sgd"): ADAM})
    assert (adam[3], adam[-1]) == ("1.39 ± 0.03", "higher")
    assert (sgd[3], sgd[-1]) == ("", "")
    assert adam[4:8] == sgd[4:8]


def test_table_1_leaves_out_a_seed_that_diverged() -> None:
    """The mean of 1.3 and 1.5, and the interval of two seeds, 12.706 × 0.1."""
    lost = finished("Adam", [[90, 90, 90], [1.3, 99, 1.5]])
    (row,) = table1.rows({("mnistfc", "adam"): lost})
    assert row[4:] == ["1.40", "0.13 to 2.67", "1.40", "3, 1 diverged", "reproduced"]


def test_tuned_runs_side_by_side() -> None:
    """Less Adam's 1, 3, 2: 2, 0, 1, hence a mean of 1 ± 4.3027 / √3."""

    def one(name: str, optimizer: str, last: list[float]) -> Finished:
        made = finished(name, [[90, 90, 90], last])
        return made._replace(configuration=made.configuration | {"optimizer": optimizer})

    best, ours = one("Adam", "adamw", [1, 3, 2]), one("SNOO", "snoo", [3, 3, 3])
    one_lost = one("SGD", "sgd", [1, 99, 1])
    others = {name: one_lost for name in ("sam", "sgd")}
    others |= {name: ours for name in ("entropy_sgd", "entropy_adam", "snoo")}
    tuning = [
        {"workload": "mnistfc", "optimizer": name, "scores": scores}
        for name in ("sgd", "adamw", "snoo")
        for scores in ([1.0], [2.0], [1.0, 2.0, 3.0])
    ]
    rows = tuned.table([{"adam": best, **others}], tuning).splitlines()
    assert rows[3] == "| SGD | 1.00 ± 0.00, 1 diverged |"
    assert rows[5] == "| Adam; AdamW for the GPT | **2.00 ± 0.58** |"
    assert rows[-4] == "| SNOO less the best baseline | +1.00 ± 2.48 |"
    assert rows[-1] == "| settings tried of each | 2, 1 of them on more seeds |"
    with pytest.raises(ValueError, match="unequal numbers of settings"):
        tuned.table([{"adam": best, **others}], tuning[1:])


def test_logs_that_are_not_one_training_are_refused() -> None:
    assert compare.find("further/char_lstm-tuned-snoo").seeds == [3, 4, 5, 6, 7]
    assert compare.find("further/lenet-sgld-1").seeds == [0]
    with pytest.raises(
        InputError, match=r"lenet-tuned-sno: no logs .*did you mean lenet-tuned-snoo"
    ):
        compare.find("lenet-tuned-sno")
    with pytest.raises(InputError, match=r"lenet-sgld-1.*seeds \[0, 0\], each expected once"):
        compare.find("further/lenet-sgld")


def test_seeds_of_other_settings_are_not_one_training(tmp_path: pathlib.Path) -> None:
    first, second = (RESULTS / "logs" / f"mnistfc-paper-adam-{seed}.jsonl" for seed in (0, 1))
    paths = [pathlib.Path(shutil.copy(path, tmp_path)) for path in (first, second)]
    assert finished_runs.read("paper", paths).seeds == [0, 1]
    text = second.read_text()
    (tmp_path / second.name).write_text(text.replace('"batch_size": 256', '"batch_size": 7', 1))
    with pytest.raises(
        InputError, match=r"adam-1.* than mnistfc-paper-adam-0.*: batch_size 256 there, 7 given"
    ):
        finished_runs.read("paper", paths)


def test_the_comparisons_on_the_pages_can_be_made() -> None:
    root = RESULTS.parents[1]
    pages = [RESULTS.parent / "RESULTS.md", *(root / "docs").glob("*.md")]
    texts = [page.read_text() for page in pages]
    pairs = [pair for text in texts for pair in re.findall(r"compare (\S+-\S+) ([^\s`]+)", text)]
    assert len(pairs) >= 3
    for pair in pairs:
        compared = compare.text(list(pair), [compare.find(name) for name in pair])
        assert "no common seed" not in compared


def test_a_kept_log_of_other_settings_is_not_taken_for_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, flags = "mnistfc-paper-adam-0", ["mnistfc", "--optimizer", "adam", "--data-dir", "DIR"]
    options = argparse.Namespace(work=pathlib.Path("nowhere"))
    assert run.run(name, flags, queue.SimpleQueue(), options)
    assert not run.run(name, [*flags, "--batch-size", "7"], queue.SimpleQueue(), options)
    assert (
        "with other settings (batch_size 256 there, 7 given): move it away first"
        in capsys.readouterr().out
    )


def test_a_training_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run", lambda name, *_: "-adam-" not in name)
    options = argparse.Namespace(
        jobs=1, seeds=2, workloads=["mnistfc"], variants=["paper"], optimizers=["sgd", "adam"]
    )
    options.data_dir = pathlib.Path("DIR")
    assert run.run_all(options) == ["mnistfc-paper-adam-0", "mnistfc-paper-adam-1"]


def test_validation_is_shown_of_the_seeds_that_have_it() -> None:
    one, *others = [finished("SGD", [[90.0], [error]]).curves for error in (3, 2, 4)]
    others = [curves._replace(validation_loss=np.log(curves.test_error)) for curves in others]
    joined = report.side_by_side([one, *others])
    assert joined.test_error.shape == (2, 3)
    assert np.isnan(report.side_by_side([one, one]).validation_loss).all()
    assert finished("SGD", [[90.0], [3]]).validation is None
    configuration = {"workload": "ptb", "seeds": 3, "gradient_evaluations": 300}
    shown = Finished(configuration, [0, 1, 2], "paper", joined, report.SCORES["perplexity"], 12.0)
    np.testing.assert_allclose(shown.validation, [[90, 90], [2, 4]])
    assert " 3.00 ± 1.00 (of 2) |" in run.table([[shown]])


def test_a_seed_that_diverged_may_be_one_of_those_with_validation() -> None:
    """The logs of the first do not have it."""
    each = [finished("SGD", [[90.0], [error]]).curves for error in (3, 99, 4)]
    each = [curves._replace(test_loss=np.log(curves.test_error)) for curves in each]
    held_out = [curves._replace(validation_loss=curves.test_loss) for curves in each[1:]]
    configuration = {"workload": "ptb", "seeds": 3, "gradient_evaluations": 300}
    joined = report.side_by_side([each[0], *held_out])
    one = Finished(configuration, [0, 1, 2], "paper", joined, report.SCORES["perplexity"], 12.0)
    assert one.sound().seeds == [0, 2]
    np.testing.assert_allclose(one.sound().validation, [[90], [4]])


@pytest.mark.parametrize("lost", [99, np.nan])
def test_a_seed_that_diverged_has_no_part_in_the_race(lost: float) -> None:
    """Without it the other comes to 2 and to 1, and ours has 1.5 and 1."""
    other = finished("Adam", [[90, 90, 90], [2, lost, 2], [1, lost, 1]])
    ours = finished("SNOO", [[90, 90, 90], [1.5, 1.5, 1.5], [1, 1, 1]])
    assert ours.gradients_to_best_of(other) == "200"
    assert other.gradients_to_best_of(other) == "200"
    assert other.gradients_to_best_of(ours) == "200"
