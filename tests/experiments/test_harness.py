"""Accounting and reports of a training, and mistakes in one line."""

import collections
import io
import re
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments.harness import evaluation, report, training
from experiments.io.dataset import Dataset
from experiments.io.errors import InputError, one_line_errors
from experiments.workloads import digits

# 41 rounds make 20 segments of two rounds and a last one of one.
BUDGET = training.Budget(rounds=41, inner_steps=4, batch_size=5)
SEEDS = 3


class Run(NamedTuple):
    """A short training, and the batches on which a gradient was evaluated, by shape."""

    measurements: list[training.Measurement]
    batches_seen: collections.Counter


def small_dataset() -> Dataset:
    """Two classes that a linear model tells apart."""
    labels = np.arange(60, dtype=np.int32) % 2
    noise = np.random.default_rng(0).normal(size=(60, 2, 2))
    images = (noise + 4 * labels[:, None, None] - 2).astype(np.float32)
    return Dataset(images[:50], labels[:50], images[50:], labels[50:])


def linear_model() -> evaluation.Model:
    def logits(params, images):
        return images.reshape(len(images), -1) @ params["weights"]

    return evaluation.Model(
        init=lambda key: {"weights": 0.01 * jax.random.normal(key, (4, 2))},
        training_logits=lambda params, images, key: logits(params, images),
        statistics=lambda params, batches: (),
        logits=lambda params, statistics, images: logits(params, images),
    )


def make_contestant(name: str) -> training.Contestant:
    return digits.make_contestant(name, BUDGET, digits.SETTINGS["digits"].arguments[name])


def run(name: str) -> Run:
    contestant, seen = make_contestant(name), collections.Counter()

    def take_counted_round(optimizer, grad_fn, params, state, batches):
        def counted(params, batch):
            jax.debug.callback(lambda images: seen.update([images.shape]), batch[0])
            return grad_fn(params, batch)

        return contestant.take_round(optimizer, counted, params, state, batches)

    counted = contestant._replace(take_round=take_counted_round)
    measurements = list(training.train(counted, linear_model(), small_dataset(), BUDGET, SEEDS))
    jax.effects_barrier()
    return Run(measurements, seen)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {name: run(name) for name in digits.OPTIMIZERS}


@pytest.mark.parametrize("name", digits.OPTIMIZERS)
def test_every_optimizer_evaluates_exactly_its_budget_of_gradients(runs, name):
    measurements, batches_seen = runs[name]
    assert batches_seen == {(5, 2, 2): SEEDS * 41 * 4}
    expected = [*range(0, 41 * 4, 2 * 4), 41 * 4]
    assert [measurement.gradient_evaluations for measurement in measurements] == expected
    assert BUDGET.gradient_evaluations == 41 * 4


@pytest.mark.parametrize("name", digits.OPTIMIZERS)
def test_training_lowers_the_loss_of_every_seed(runs, name):
    first, *_, last = runs[name].measurements
    assert (last.train_loss < 0.7 * first.train_loss).all()
    assert last.test_error.mean() < first.test_error.mean()


def test_optimizers_start_from_the_same_parameters_and_seeds_from_different_ones(runs):
    losses = [run.measurements[0].train_loss for run in runs.values()]
    for loss in losses:
        np.testing.assert_array_equal(loss, losses[0])
    assert len(set(losses[0].tolist())) == SEEDS


def test_a_run_can_be_repeated(runs):
    again = run("Entropy-SGD").measurements[-1]
    np.testing.assert_array_equal(again.train_loss, runs["Entropy-SGD"].measurements[-1].train_loss)


def test_each_seed_has_noise_of_its_own():
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    _, state = training.start(make_contestant("Entropy-SGD"), linear_model(), keys, BUDGET)
    assert len(np.unique(jax.random.key_data(state.rng_key), axis=0)) == SEEDS


@pytest.mark.parametrize("measurements", [1, 2, 3, 5, 9])
def test_batches_pass_through_all_images_before_any_comes_again(measurements):
    """However often is measured: twelve images, in segments of 1/3 to 3 passes."""
    budget = training.Budget(9, 2, 2, measurements=measurements)
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    parts = [training.draw_segment(keys, index, budget, 12)[0] for index in range(4)]
    passes = np.concatenate([np.ravel(part) for part in parts])
    passes = passes[: len(passes) // 12 * 12].reshape(-1, 12)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(12), (len(passes), 1)))
    assert len(np.unique(passes, axis=0)) == len(passes)


def test_seeds_and_segments_see_batches_of_their_own():
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    segments = [training.draw_segment(keys, index, BUDGET, 50) for index in range(2)]
    assert segments[0][0].shape == (SEEDS, 2, 4, 5)
    drawn = {np.asarray(seed).tobytes() for order, _ in segments for seed in order}
    assert len(drawn) == 2 * SEEDS
    masks = np.concatenate([jax.random.key_data(keys).reshape(-1, 2) for _, keys in segments])
    assert len(np.unique(masks, axis=0)) == 2 * SEEDS * 2 * 4  # a key of its own for each batch


@pytest.mark.parametrize(
    ("epochs", "rounds"),
    [(1, 1), (100, 100), (3, 3)],
)
def test_effective_epochs_count_gradient_evaluations(epochs, rounds):
    # 1280 images in batches of 64 are 20 gradient evaluations, one round.
    assert training.make_budget(epochs, 1280, 64, 20).rounds == rounds
    # Of 60,000 in batches of 128 they are 468.75: 23.4 rounds.
    assert training.make_budget(epochs, 60_000, 128, 20).rounds == round(23.4375 * epochs)


def test_the_smallest_budget_is_one_round():
    assert training.make_budget(10, examples=100, batch_size=100, inner_steps=20).rounds == 1
    with pytest.raises(InputError, match=r"are 9 gradient .* allowed are 10, half a round"):
        training.make_budget(9, examples=100, batch_size=100, inner_steps=20)


def test_segments_add_up_and_are_few():
    for rounds in (1, 39, 40, 41, 100, 469):
        segments = training.Budget(rounds, 20, 64).segments
        assert sum(segments) == rounds
        assert len(segments) <= training.MEASUREMENTS
        assert max(segments) == segments[0]


def example_curves(seeds: int) -> list[report.Curves]:
    """The best test error stands in the middle, the last is 4 % on average."""
    error = np.linspace(3, 5, seeds) if seeds > 1 else np.array([4.0])
    return [
        report.Curves(
            name,
            np.array([0, 10, 20]),
            np.stack([error, error / 10, error / 100]),
            np.stack([error, error / 10, error / 100]),
            np.stack([20 * error, error / 4, error]),
            1234.0,
            np.full((3, seeds), np.nan),
        )
        for name in digits.OPTIMIZERS
    ]


def render(table) -> str:
    console = report.Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_table_shows_the_last_measurement_with_its_standard_error():
    text = render(report.results_table(example_curves(5), "a title"))
    # 3, 3.5, 4, 4.5, 5: standard deviation sqrt(0.625), standard error sqrt(0.125).
    rows = re.findall(r"│ (\S.*?) +│ +4\.00 ± 0\.35 │ 4\.00e-02 ± 3\.54e-03 │ +1,234 │", text)
    assert rows == list(digits.OPTIMIZERS)
    assert "standard error" in text


def test_table_of_one_seed_claims_no_spread():
    text = render(report.results_table(example_curves(1), "a title"))
    assert len(re.findall(r"│ +4\.00 │", text)) == 4
    assert "±" not in text
    assert "nan" not in text


def test_table_of_unequal_seeds_says_so():
    text = render(report.results_table([*example_curves(5), *example_curves(1)], "a title"))
    assert "over 1 to 5 seeds" in " ".join(text.split())


def test_the_authors_variant_has_the_colour_of_the_optimizer():
    assert report.colour("Entropy-SGD as published") == report.colour("SGD")
    assert report.colour("Entropy-SGD") != report.colour("Entropy-Adam as published")


@pytest.mark.parametrize("seeds", [1, 5])
def test_figure_is_a_png(tmp_path, seeds):
    path = tmp_path / "curves.png"
    report.save_figure(example_curves(seeds), "a title", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_figure_of_a_run_without_errors_does_not_warn(tmp_path):
    curves = [curve._replace(test_error=0 * curve.test_error) for curve in example_curves(5)]
    report.save_figure(curves, "a title", tmp_path / "curves.png")


@pytest.mark.parametrize(
    "package", ["flax", "matplotlib", "orbax", "pooch", "rich", "sklearn", "tensorboardX"]
)
def test_a_missing_package_names_the_extra(package, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped, one_line_errors("digits.py"):
        __import__(package)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert package in error
    assert 'pip install -e ".[examples]"' in error
    assert error.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ModuleNotFoundError), one_line_errors("digits.py"):
        import no_such_module  # noqa: F401
    with pytest.raises(ZeroDivisionError), one_line_errors("digits.py"):
        _ = 1 / 0


def test_the_time_left_is_known_however_long_a_segment_takes(monkeypatch):
    now = [0.0]
    progress = report.progress_bar(Console(file=io.StringIO()))
    monkeypatch.setattr(progress, "get_time", lambda: now[0])
    task = progress.add_task("", total=10, loss="", error="", rate="")
    for _ in range(4):
        now[0] += 400.0
        progress.advance(task)
    assert progress.tasks[0].time_remaining == pytest.approx(6 * 400, rel=0.4)
