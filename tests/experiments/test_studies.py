"""The damages and the calibration of the studies, against NumPy."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.harness.report import SCORES
from experiments.io.errors import InputError
from experiments.studies import RESULTS, overview, paired, robustness, tune, width

MNIST = width.CONDITIONS["batches of 512, MNIST"]
RANDOM = np.random.default_rng(0)
WEIGHTS = [RANDOM.normal(size=(40, 50)), RANDOM.normal(size=(3, 3, 20, 10))]
KEY = jax.random.key(0)
MAPPINGS = pathlib.Path("/proc/self/maps")


def damage(name: str, value: float) -> list[np.ndarray]:
    arrays = [jnp.asarray(w, jnp.float32) for w in WEIGHTS]
    return [np.asarray(w) for w in robustness.DAMAGES[name].of(arrays, jnp.float32(value), KEY)]


def test_finalists_take_no_settings_besides_their_own(monkeypatch, capsys):
    arguments = ["--data-dir", "DIR", "--finalists", "1", "--widht", "10"]
    monkeypatch.setattr("sys.argv", ["tune", *arguments])
    with pytest.raises(SystemExit):
        tune.main()
    assert "--finalists has its settings from --out; got --widht 10 too" in capsys.readouterr().err


def test_finalists_have_been_tried_before(monkeypatch, tmp_path):
    arguments = ["--data-dir", "DIR", "--finalists", "3", "--out", str(tmp_path / "tuning.json")]
    monkeypatch.setattr("sys.argv", ["tune", *arguments])
    with pytest.raises(InputError, match=r"no mnistfc with .* in one seed; tune it first"):
        tune.main()


def test_all_seeds_are_trained_and_damaged(monkeypatch, tmp_path):
    """By default five."""
    seeds = []
    monkeypatch.setattr(
        robustness, "compete", lambda flags: seeds.append(train.parse_arguments(flags).seeds) or {}
    )
    for given in ([], ["--seeds", "3"]):
        out = ["--out", str(tmp_path / f"{len(given)}.json")]
        monkeypatch.setattr("sys.argv", ["robustness", "--data-dir", "DIR", *out, *given])
        robustness.train_all(robustness.parse_arguments())
    assert seeds == [5] * len(robustness.OPTIMIZERS) + [3] * len(robustness.OPTIMIZERS)


def test_noise_is_in_proportion_to_the_weight() -> None:
    for damaged, w in zip(damage("noise", 0.3), WEIGHTS, strict=True):
        relative = (damaged / w - 1) / 0.3
        assert abs(relative.mean()) < 5 / np.sqrt(w.size)
        assert abs(relative.var() - 1) < 5 * np.sqrt(2 / w.size)


@pytest.mark.parametrize("percent", [0, 50, 90, 100])
def test_pruning_takes_the_smallest_of_all(percent: int) -> None:
    damaged = np.concatenate([w.ravel() for w in damage("pruning", percent)])
    whole = np.concatenate([w.ravel() for w in WEIGHTS]).astype(np.float32)
    keep = whole.size - min(whole.size * percent // 100, whole.size - 1)
    assert (damaged != 0).sum() == keep
    np.testing.assert_array_equal(np.sort(np.abs(damaged))[-keep:], np.sort(np.abs(whole))[-keep:])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_to_the_nearest_level(bits: int) -> None:
    for damaged, w in zip(damage("rounding", bits), WEIGHTS, strict=True):
        levels = np.abs(w).max() * np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))
        levels /= 2 ** (bits - 1) - 1
        nearest = levels[np.abs(w.ravel()[:, None] - levels).argmin(1)].reshape(w.shape)
        np.testing.assert_allclose(damaged, nearest, atol=1e-5)


def test_biases_are_spared() -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 0.123), "scale": jnp.ones(())}
    damaged = robustness.damaged(robustness.DAMAGES["noise"], params, 0.5, KEY)
    assert (damaged["kernel"] != 1).all()
    assert (damaged["bias"] == params["bias"]).all()
    assert damaged["scale"] == 1


def test_calibration_error_is_the_mean_gap_of_bins() -> None:
    logits = RANDOM.normal(size=(500, 4)).astype(np.float32) * 2
    labels = RANDOM.integers(0, 4, 500)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), logits.argmax(1) == labels
    gap = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            gap += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    found = robustness.calibration_error(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, 100 * gap, rtol=1e-4)


def test_agreement_is_with_each_other_seed() -> None:
    answers = np.array([[1, 2, 3, 4], [1, 2, 3, 0], [1, 2, 0, 0]])
    np.testing.assert_allclose(robustness.agreement(answers), [62.5, 75.0, 62.5])


def test_interval_of_a_paired_difference() -> None:
    """Of 1, 2, 3: mean 2, standard error 1/√3, and the quantile of Student's law 4.3027."""
    found = paired.difference(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), ".2f")
    assert found == "+2.00 ± 2.48"


def test_overview_is_in_percent_of_the_best_baseline() -> None:
    """Of 1, 2, 3 beside a mean of 4: mean and interval of the test above, times 25."""

    def by_seed(*scores: float) -> dict[int, float]:
        return dict(enumerate(scores))

    best = by_seed(5, 3, 4)
    further = {9: 1.0, 0: 6.0, 1: 5.0, 2: 7.0, 3: np.nan}  # of 9 and 3 there is no difference
    scores = {"SGD": by_seed(6, 4, 5), "Adam": best, "SNOO": further}
    (name, (mean, margin)), *others = overview.differences(scores).items()
    assert (name, others) == ("SNOO", [])
    np.testing.assert_allclose([mean, margin], [50, 25 * 4.3027 / np.sqrt(3)], rtol=1e-4)
    scores["SAM"] = by_seed(1, np.nan, 1)  # a seed that diverged is not the best
    scores["Entropy-SGD"] = by_seed(4, 2, 3)
    *_, row, _, own, _, _, _, counts = overview.text({"task": scores}).splitlines()
    assert row == "| task | Adam | -25.0 ± 0.0 |  | +50.0 ± 62.1 |  |"
    assert own == "Entropy-SGD: 1 intervals, 1 below zero and 0 above"
    assert counts == "all: 2 intervals, 1 below zero and 0 above"


def test_differences_are_taken_seed_by_seed() -> None:
    def errors(less: float) -> dict[str, list[list[float]]]:
        seeds = np.array([3.0, 8.0, 5.0])[:, None] - less
        damages = robustness.DAMAGES.items()
        damaged = {name: (seeds + np.arange(len(d.values))).tolist() for name, d in damages}
        return damaged | {"test error": seeds[:, 0].tolist()}

    results = {"sgd": errors(0), "entropy_sgd": errors(1.5), "adam": errors(-0.25)}
    header, _, *rows = robustness.comparison(results).splitlines()
    assert header == "| Entropy-SGD's error less that of | SGD | Adam |"
    assert [row.split(" | ")[1:] for row in rows] == [["-1.50 ± 0.00", "-1.75 ± 0.00 |"]] * 13


@pytest.mark.skipif(not MAPPINGS.exists(), reason="needs Linux")
def test_a_setting_leaves_no_compiled_program_behind() -> None:
    """Each setting kept 120 memory mappings, until LLVM ran out of them in a long tuning."""

    def mappings_after(rate: str) -> int:
        flags = ["digits", "--optimizer", "sgd", "--effective-epochs", "1", "--measurements", "1"]
        tune.try_setting([*flags, "--learning-rate", rate], SCORES["error"])
        return len(MAPPINGS.read_text().splitlines())

    first, second = mappings_after("0.1"), mappings_after("0.2")
    assert second < first + 30


def test_settings_are_ranked_by_seeds_then_budget_then_score() -> None:
    def result(scores: list[float], epochs: float) -> dict:
        names = {"workload": "mnistfc", "optimizer": "sgd", "settings": []}
        return {**names, "effective_epochs": epochs, "scores": scores}

    lucky, longer, again = result([1.0], 2.0), result([3.0], 5.0), result([4.0, 4.0], 2.0)
    worse, diverged = result([5.0, 5.0], 2.0), result([2.0, float("nan")], 9.0)
    tried = [lucky, worse, diverged, longer, again]
    assert tune.ranking(tried, "mnistfc", "sgd") == [again, worse, longer, lucky]
    assert tune.ranking(tried, "mnistfc", "adam") == []


def test_every_setting_that_was_tried_is_accepted_by_train() -> None:
    """Lists of flags serve several optimizers, and `train.py` refuses those that do nothing."""
    tried = json.loads((RESULTS / "tuning.json").read_text())
    flags = {
        (result["workload"], result["optimizer"]): [*result["settings"], "--data-dir", "x"]
        for result in tried
    }
    for optimizer in width.MNIST:
        more = [*MNIST.flags[1:], *tune.FIXED]
        flags["mnistfc", optimizer] = [*more, *width.grid(MNIST, optimizer)[0]]
    for (workload, optimizer), chosen in flags.items():
        given = [workload, "--optimizer", optimizer, *chosen]
        options = train.parse_arguments(tune.own(given))
        assert options.schedule in chosen
        assert (options.inner_schedule is None) == (optimizer in ("sgd", "adam", "adamw", "sam"))
