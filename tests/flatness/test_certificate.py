"""The PAC-Bayes bound against a conjugate model in closed form, and SciPy's root of the kl."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from entropy_sgd_jax import flatness
from entropy_sgd_jax.flatness import _chains, _convergence, _tempering, pac_bayes_bound
from entropy_sgd_jax.flatness._certificate import PacBayesBound
from tests.core.helpers import double_precision

SCOPE, CENTRE, TRUTH, COUNT = 2.0, 0.3, np.array([1.0, -0.5, 0.0]), 200
LADDER = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 200.0]
STEPS: dict[str, Any] = {"inverse_temperatures": LADDER, "num_steps": 400}


def loss(params: Any, batch: Any) -> jax.Array:
    """Of a Gaussian of unit width: the Gibbs posterior is a Gaussian too."""
    return 0.5 * jnp.mean(jnp.sum((batch - params) ** 2, axis=-1))


def error(params: Any, batch: Any) -> jax.Array:
    """Bounded, without a gradient: how often the first coordinate is 1 above the mean."""
    return jnp.mean(batch[..., 0] > params[0] + 1)


def examples(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(COUNT, 3)) + TRUTH


class Conjugate:
    """The exact posterior at each β, in float64."""

    def __init__(self, x: np.ndarray, betas: Any) -> None:
        betas = np.asarray(betas, np.float64)
        precision, middle = SCOPE + betas, x.mean(axis=0)
        shift = betas[:, None] * (middle - CENTRE) / precision[:, None]
        mean = CENTRE + shift
        spread = ((x - middle) ** 2).sum(axis=1).mean()
        self.losses = (3 / precision + ((mean - middle) ** 2).sum(axis=1) + spread) / 2
        ratio = SCOPE / precision
        self.divergences = (3 * (ratio - 1 - np.log(ratio)) + SCOPE * (shift**2).sum(axis=1)) / 2
        above = x[:, 0] - mean[:, :1] - 1
        self.errors = special.ndtr(above * np.sqrt(precision)[:, None]).mean(axis=1)
        width = np.sqrt(1 + 1 / precision)
        self.test_errors = special.ndtr((TRUTH[0] - mean[:, 0] - 1) / width)
        left = np.concatenate([[0], np.cumsum(np.diff(betas) * self.losses[:-1])])
        right = np.concatenate([[0], np.cumsum(np.diff(betas) * self.losses[1:])])
        self.left, self.right = left - betas * self.losses, right - betas * self.losses


def measured(x: Any, **options: Any) -> flatness.PacBayesBound:
    batches = jnp.asarray(x, jnp.float32).reshape(4, -1, 3)
    options = {"error": error, "scope": SCOPE, **STEPS, **options}
    return pac_bayes_bound(loss, jnp.full(3, CENTRE), batches, **options)


def root_of_kl(q: float, limit: float) -> float:
    """The p above q with kl(q ‖ p) = limit."""

    def excess(p: float) -> float:
        return special.rel_entr(q, p) + special.rel_entr(1 - q, 1 - p) - limit

    return optimize.brentq(excess, q, 1 - 1e-12)


@pytest.fixture(scope="module")
def one() -> tuple[np.ndarray, flatness.PacBayesBound]:
    x = examples(0)
    return x, measured(x, key=3)


def test_parts_are_those_of_the_conjugate_model(one: Any) -> None:
    x, bound = one
    ladder = flatness.TemperatureLadder(*(np.asarray(row, np.float64) for row in bound.ladder))
    np.testing.assert_array_equal(ladder.inverse_temperatures, [0, *LADDER])
    exact = Conjugate(x, ladder.inverse_temperatures)
    assert (np.abs(ladder.losses - exact.losses) < 4 * ladder.loss_errors).all()
    assert (np.abs(ladder.errors - exact.errors) < 4 * ladder.error_errors).all()
    off = np.abs(ladder.divergences - exact.left)
    assert (off <= 4 * ladder.divergence_errors + 1e-4).all()
    assert (ladder.divergences + 4 * ladder.divergence_errors >= exact.divergences).all()
    # Tight enough that the sum from the other side, a lower bound, would be told from it.
    assert exact.right[-1] + 10 * ladder.divergence_errors[-1] < exact.left[-1]
    assert exact.right[-1] < exact.divergences[-1] < exact.left[-1]


def test_the_bound_is_maurers(one: Any) -> None:
    """Of the widened means, solved by SciPy."""
    _, bound = one
    ladder, slack = bound.ladder, 0.025
    quantile = -special.ndtri(slack / (2 * len(ladder.bounds)))
    for i, value in enumerate(ladder.bounds):
        q = float(ladder.errors[i] + quantile * ladder.error_errors[i])
        complexity = float(ladder.divergences[i] + quantile * ladder.divergence_errors[i])
        complexity += np.log(2 * COUNT**0.5 / slack)
        np.testing.assert_allclose(value, root_of_kl(q, complexity / COUNT), rtol=1e-4)
    best = int(np.argmin(ladder.bounds))
    assert bound.value == ladder.bounds[best]
    assert bound.inverse_temperature == ladder.inverse_temperatures[best]
    assert bound.error == ladder.errors[best]
    assert bound.draws.shape == (8, 3)


def test_kl_is_inverted_from_above() -> None:
    for q in (0.0, 1e-3, 0.1, 0.5):
        for limit in (1e-5, 1e-3, 0.1, 2.0):
            found = float(_tempering.kl_inverse(jnp.float32(q), jnp.float32(limit)))
            np.testing.assert_allclose(found, root_of_kl(q, limit), atol=2e-5, rtol=2e-3)
    for q, limit in ((jnp.nan, 0.1), (0.1, jnp.nan), (0.1, jnp.inf), (1.0, 0.1)):
        assert _tempering.kl_inverse(jnp.float32(q), jnp.float32(limit)) == 1


def test_a_loss_in_float64_of_parameters_in_float32() -> None:
    with double_precision():
        quick = {"inverse_temperatures": [1.0, 2.0], "num_steps": 400}
        batches = jnp.asarray(examples(0))[None]
        bound = pac_bayes_bound(
            loss, jnp.zeros(3, jnp.float32), batches, error=error, scope=SCOPE, **quick
        )
    assert bound.value.dtype == jnp.float32
    assert bound.error < bound.value < 1


def test_ladder_is_found() -> None:
    """From one over the prior's deviation of the loss to n, by equal factors."""
    x = examples(1)
    bound = measured(x, inverse_temperatures=None, num_temperatures=8)
    betas = np.asarray(bound.ladder.inverse_temperatures, np.float64)
    assert betas[0] == 0
    np.testing.assert_allclose(betas[-1], COUNT, rtol=1e-5)
    np.testing.assert_allclose(betas[2:] / betas[1:-1], betas[2] / betas[1], rtol=1e-3)
    rng = np.random.default_rng(0)
    prior = CENTRE + rng.normal(size=(4000, 3)) / SCOPE**0.5
    deviation = (0.5 * ((prior - x.mean(axis=0)) ** 2).sum(axis=1)).std()
    np.testing.assert_allclose(betas[1], 1 / deviation, rtol=0.25)


def test_batches_of_different_sizes_and_jit_agree_with_one_batch() -> None:
    x = jnp.asarray(examples(2), jnp.float32)

    def run(batches: Any) -> Any:
        params, error_ = jnp.zeros(3), error
        return pac_bayes_bound(
            loss, params, batches, error=error_, inverse_temperatures=[5.0, 50.0], num_steps=20
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, streamed = run(x[None]), run([x[:150], x[150:]])
    compiled = jax.jit(run)(x.reshape(4, 50, 3))
    for other in (streamed, compiled):
        np.testing.assert_allclose(other.ladder.losses, whole.ladder.losses, rtol=1e-4)
        np.testing.assert_allclose(other.value, whole.value, rtol=1e-3)


def test_random_labels_are_not_certified_below_chance() -> None:
    """Though a hundred weights for as many examples learn them by heart."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(100, 100)), jnp.float32)
    signs = jnp.asarray(rng.choice([-1, 1], 100), jnp.float32)

    def logistic(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.log1p(jnp.exp(-batch[1] * (batch[0] @ params))))

    def wrong(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(batch[1] * (batch[0] @ params) <= 0)

    betas = [10.0, 100.0, 1000.0]
    bound = pac_bayes_bound(
        logistic,
        jnp.zeros(100),
        (x[None], signs[None]),
        error=wrong,
        inverse_temperatures=betas,
        num_steps=400,
    )
    assert bound.ladder.errors[-1] < 0.1
    assert bound.value > 0.5


def test_chains_that_have_not_arrived_are_warned_of() -> None:
    def narrow(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.sum(jnp.logspace(0, 4, 30) * params**2) / 1e4

    with pytest.warns(UserWarning, match="not reached the posterior.*Raise `num_steps`"):
        pac_bayes_bound(
            narrow,
            jnp.ones(30),
            jnp.zeros((1, 100)),
            error=lambda params, batch: jnp.float32(0.1),
            inverse_temperatures=[1e6],
            num_steps=8,
            scope=1e-2,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1.0}, "`confidence` must be a number in \\(0, 1\\); got 1.0"),
        ({"inverse_temperatures": [2.0, 1.0]}, "`inverse_temperatures` must be finite numbers"),
        ({"inverse_temperatures": None, "num_temperatures": 0}, "`num_temperatures` must be"),
        ({"num_chains": 1}, "`num_chains` must be"),
        ({"scope": 0.0}, "`scope` must be"),
        ({"error": None, "num_steps": 8}, "`loss` must be in \\[0, 1\\]"),
        ({"batch_size": lambda batch: 1.0}, "`batches` must count at least 8 examples; got 4"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(examples(0), **options)


@pytest.mark.parametrize(
    "batches",
    [
        {"noise": jnp.zeros((1, 1000)), "x": jnp.zeros((1, 100, 3))},  # the first leaf has more
        {"x": jnp.zeros((100, 3)), "y": jnp.zeros(100)},  # examples for batches
        [{"x": jnp.zeros((100, 3)), "y": jnp.zeros(())}],
    ],
    ids=["leaves of two lengths", "no batches", "a list"],
)
def test_a_number_of_examples_that_is_unclear_is_refused(batches: Any) -> None:
    """A bound of 1,000 examples, where there are 100, would be void."""

    def of_x(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((batch["x"] - params) ** 2)

    with pytest.raises(ValueError, match="how many examples a batch has"):
        pac_bayes_bound(of_x, jnp.zeros(3), batches, error=of_x, num_steps=8)
    with pytest.raises(ValueError, match="how many examples a batch has"):
        flatness.local_learning_coefficient(of_x, jnp.zeros(3), batches, num_steps=8)


@pytest.mark.filterwarnings("ignore:The chains have not")  # as short as these
def test_keys_are_no_examples() -> None:
    batch = {"key": jax.random.key(0), "x": jnp.asarray(examples(0), jnp.float32)}

    def of_x(params: Any, batch: Any) -> jax.Array:
        return loss(params, batch["x"])

    few: dict[str, Any] = {"inverse_temperatures": [1.0], "num_steps": 8}
    few |= {"error": lambda params, batch: 0.5, "confidence": np.float32(0.95)}
    with_key = pac_bayes_bound(of_x, jnp.zeros(3), [batch], **few)
    without = pac_bayes_bound(loss, jnp.zeros(3), [batch["x"]], **few)
    assert with_key.value == without.value


@pytest.mark.filterwarnings("ignore:The chains have not")
def test_what_leaves_its_range_under_jit_is_warned_of_afterwards() -> None:
    x = jnp.asarray(examples(0), jnp.float32)
    bound = jax.jit(
        lambda params: pac_bayes_bound(
            loss, params, x[None], error=lambda p, b: 2 + error(p, b), num_steps=8,
            inverse_temperatures=[1.0],
        )
    )(jnp.zeros(3))  # fmt: skip
    with pytest.warns(UserWarning, match=r"has left \[0, 1\]"):
        bound.check()


def test_an_error_that_is_no_scalar_is_refused() -> None:
    def each(params: Any, batch: Any) -> jax.Array:
        return batch[..., 0] > params[0] + 1

    with pytest.raises(
        ValueError, match=r"`error\(params, batch\)` must be a scalar; got .*\(200,"
    ):
        pac_bayes_bound(loss, jnp.zeros(3), examples(0)[None], error=each, num_steps=8)


@pytest.mark.slow
def test_coverage() -> None:
    """Over 200 data sets: Maurer's bound, and the upper limit of the divergence by itself."""
    repeats = [examples(100 + i) for i in range(200)]
    x = jnp.asarray(np.stack(repeats), jnp.float32)
    keys = jax.random.split(jax.random.key(0), len(x))
    many = jax.jit(lambda: jax.lax.map(lambda pair: measured(pair[0], key=pair[1]), (x, keys)))()
    ladder = flatness.TemperatureLadder(*(np.asarray(row, np.float64) for row in many.ladder))
    exact = [Conjugate(x, [0, *LADDER]) for x in repeats]
    losses, errors, divergences, left, tests = (
        np.stack([getattr(one, name) for one in exact])
        for name in ("losses", "errors", "divergences", "left", "test_errors")
    )
    within = [
        np.abs(ladder.losses - losses) < 2 * ladder.loss_errors,
        np.abs(ladder.errors - errors) < 2 * ladder.error_errors,
        (np.abs(ladder.divergences - left) < 2 * ladder.divergence_errors)[:, 1:],
    ]
    shares = [share.mean() for share in within]
    assert min(shares) > 0.9, shares  # 0.954 for a normal distribution
    assert (ladder.divergences + 3 * ladder.divergence_errors >= divergences).mean() > 0.997
    assert (ladder.bounds >= tests).all(axis=1).mean() >= 0.95


def test_draws_are_from_the_posterior_that_is_certified() -> None:
    """Where all are wrong alike, that is the prior: its divergence is 0."""
    bound = measured(
        examples(0), error=lambda params, batch: jnp.float32(0.1), num_chains=40,
        inverse_temperatures=[1.0, 1e4],
    )  # fmt: skip
    assert bound.inverse_temperature == 0
    draws = (np.asarray(bound.draws) - CENTRE) * SCOPE**0.5
    spread = draws.std(axis=0)  # of 40 normal numbers each; 0.02 at the last temperature
    assert ((spread > 0.6) & (spread < 1.4)).all()


@pytest.mark.parametrize("outside", [1.01, -0.01])
def test_an_error_a_little_outside_is_refused(outside: float) -> None:
    """Of one rung's steps, even where the mean lies inside."""

    def error(params: Any, batch: Any) -> jax.Array:
        return jnp.where(params[0] > CENTRE, outside, 0.5)

    with pytest.raises(ValueError, match=r"`error` must be in \[0, 1\]"):
        measured(examples(0), error=error, inverse_temperatures=[1.0], num_steps=40)


def ladder(**rows: Any) -> PacBayesBound:
    """A bound at the second of three temperatures, of eight chains that agree."""
    fields = {name: jnp.zeros(3) for name in _tempering.TemperatureLadder._fields}
    fields |= {"inverse_temperatures": jnp.arange(3.0), "r_hat": jnp.ones(3)}
    fields |= {name: jnp.asarray(row) for name, row in rows.items()}
    zero, draws = jnp.zeros(()), jnp.zeros((8, 3))
    return PacBayesBound(
        zero, zero, zero, jnp.ones(()), draws, _tempering.TemperatureLadder(**fields)
    )


@pytest.mark.parametrize("name", ["r_hat", "drift"])
@pytest.mark.parametrize("high", [9.0, -9.0, np.nan])
def test_each_sign_of_chains_on_their_way_is_enough(name: str, high: float) -> None:
    """Up to the temperature of the bound; what is above it does not count."""
    if name == "r_hat" and high < 0:
        pytest.skip("it is positive")
    fine = 1.0 if name == "r_hat" else 0.0
    ladder(**{name: [fine, fine, high]}).check()
    for place in (0, 1):
        row = np.full(3, fine)
        row[place] = high
        with pytest.warns(UserWarning, match="not reached the posterior at 1 of 2 temperatures"):
            ladder(**{name: row}).check()


def test_the_error_of_a_divergence_is_the_larger_of_two() -> None:
    """As if the rungs were independent, and as the chains differ."""
    ascent = _tempering.Ascent(
        offset=None, step_size=None, beta=jnp.float32(2.0),
        areas=jnp.array([5.0, 7.0, 6.0, 6.0]), variance=jnp.float32(0.09),
        best=None, draws=None, ladder=None,
    )  # fmt: skip
    means = jnp.ones(4)
    among = np.std([5, 7, 6, 6], ddof=1) / 2
    kl, small = _tempering._divergence(ascent, means, jnp.float32(0.01))
    _, large = _tempering._divergence(ascent, means, jnp.float32(0.5))
    np.testing.assert_allclose([kl, small, large], [4, among, np.hypot(0.3, 1.0)], rtol=1e-6)
    kl, _ = _tempering._divergence(ascent._replace(areas=jnp.zeros(4)), means, jnp.float32(0.01))
    assert kl == 0


def test_stock_is_taken_of_what_is_kept() -> None:
    """All that one rung of the ladder says, from made-up chains, by NumPy."""
    rng, plan = np.random.default_rng(0), _chains.plan(4, 40)
    losses, errors = 5 + rng.normal(size=(4, 40)), rng.uniform(size=(4, 40))
    acceptance, rows = rng.uniform(size=40), jnp.zeros((4, 40))
    samples = _chains.Samples(
        jnp.asarray(losses - 3), jnp.asarray(errors), rows, rows, rows, jnp.asarray(acceptance)
    )
    run = _chains.Run(samples, jnp.float32(0.5), jnp.float32(3.0))
    start = _tempering.Ascent.start(jnp.zeros((4, 2)), jnp.float32(1.0), plan, 3, jnp.float32)
    before = start._replace(
        beta=jnp.float32(2.0), areas=jnp.full(4, 12.0), variance=jnp.float32(0.1)
    )
    climb = functools.partial(_tempering.climb, plan, _tempering.Maurer(jnp.float32(100), 0.02, 3))
    after = climb(lambda number, beta, _: beta + 3, False, before, run, jnp.ones((4, 2)), 1)
    losses, errors = losses[:, 20:], errors[:, 20:]
    spread, error_spread = map(_convergence.standard_error, (losses, errors))
    expected = {
        "inverse_temperatures": 2.0,
        "losses": losses.mean(),
        "errors": errors.mean(),
        "divergences": 12 - 2 * losses.mean(),
        "loss_errors": spread,
        "error_errors": error_spread,
        "r_hat": _convergence.split_r_hat(losses),
        "drift": _convergence.drift(losses),
        "acceptance": acceptance[20:].mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(after.ladder, name)[1], value, rtol=1e-4, err_msg=name)
    assert (after.beta, after.step_size) == (5, 0.5)
    np.testing.assert_allclose(after.areas, 12 + 3 * losses.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(after.variance, 0.1 + (3 * spread) ** 2, rtol=1e-5)


def test_each_temperature_has_noise_of_its_own() -> None:
    """At 30 temperatures that are almost one, the means differ as their errors say."""
    betas = [1 + 1e-4 * i for i in range(30)]
    ladder = measured(examples(0), inverse_temperatures=betas, num_steps=200).ladder
    apart = np.std(ladder.losses[1:], ddof=1) / np.mean(ladder.loss_errors[1:])
    assert 0.6 < apart < 1.5
