"""The local learning coefficient against theorems, closed forms and quadrature."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from entropy_sgd_jax import flatness
from entropy_sgd_jax.flatness import _convergence
from entropy_sgd_jax.flatness import local_learning_coefficient as coefficient
from experiments.studies import coverage
from experiments.studies.coverage import CURVATURES, of_quadratic, quadratic, regression
from experiments.studies.exact_values import NETWORKS, aoyagi, linear_network

NO_DATA = [None]

# Of the networks of `exact_values`, as published or by hand from Aoyagi's theorem. Those of
# multiplicity 2 have (2 − 1) / ln(nβ) less at finite temperature.
PUBLISHED = [8.0, 6.0, 6.0, 6.0, 4.0, 4.5, 1.5, 13.5, 10.5, 36.5, 6.5, 3.5]
MULTIPLICITIES = [1] * 10 + [2] * 2
QUICK = {(5, 4, 5), (3, 3, 3), (6, 4, 6), (10, 8, 8, 10)}
METHODS = [
    {},
    {"precondition": False},
    {"method": "sgld"},
    {"method": "sgld", "precondition": False},
]


def aoyagi_watanabe(inputs: int, hidden: int, outputs: int, rank: int) -> tuple[float, int]:
    """Coefficient and multiplicity of a linear network of one hidden layer, from another theorem
    than that of `exact_values`.

    Aoyagi and Watanabe, "Stochastic complexities of reduced rank regression in Bayesian
    estimation", Neural Networks 18, 2005.
    """
    n, h, m, r = inputs, hidden, outputs, rank
    if n + r <= m + h and m + r <= n + h and h + r <= m + n:
        odd = (m + h + n + r) % 2
        squares = (h + r) ** 2 + m**2 + n**2
        return (-squares + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8, 1 + odd
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2, 1
    return m * n / 2, 1


def quietly(*args: Any, **kwargs: Any) -> tuple[flatness.LearningCoefficient, list[str]]:
    """The estimate, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate = coefficient(*args, **kwargs)
    return estimate, [str(warning.message) for warning in caught]


def repeated(count: int, *args: Any, **kwargs: Any) -> flatness.LearningCoefficient:
    """`count` independent estimates by one program."""
    keys = jax.random.split(jax.random.key(1), count)
    return jax.jit(lambda: jax.lax.map(lambda key: coefficient(*args, key=key, **kwargs), keys))()


def is_near(estimate: Any, exact: float, *, relative: float = 0.04) -> bool:
    return abs(estimate.value - exact) < 4 * estimate.standard_error + relative * exact


def test_theorems_agree_with_each_other_and_with_what_was_published() -> None:
    theorem = [aoyagi(*network) for network in NETWORKS]
    assert theorem == [*zip(PUBLISHED, MULTIPLICITIES, strict=True)]
    for inputs, hidden, outputs in itertools.product(range(1, 7), repeat=3):
        for rank in range(min(inputs, hidden, outputs) + 1):
            one = aoyagi((inputs, hidden, outputs), rank)
            assert one == aoyagi_watanabe(inputs, hidden, outputs, rank)


@pytest.mark.parametrize(
    ("widths", "rank", "exact"),
    [
        pytest.param(
            widths, rank, exact, marks=[] if widths in QUICK and rank != 1 else pytest.mark.slow
        )
        for (widths, rank), exact in zip(NETWORKS, PUBLISHED, strict=True)
    ],
)
def test_deep_linear_networks_have_their_coefficient_at_defaults(
    widths: Any, rank: int, exact: float
) -> None:
    estimate, _ = quietly(*linear_network(widths, rank), NO_DATA, inverse_temperature=1e5)
    assert is_near(estimate, exact)
    assert estimate.standard_error < 0.06 * exact


@pytest.mark.slow
def test_longer_chains_come_closer() -> None:
    estimate, _ = quietly(
        *linear_network((10, 8, 8, 10), 3), NO_DATA, inverse_temperature=1e5, num_steps=20_000
    )
    assert is_near(estimate, 36.5, relative=0.01)


def test_chains_that_have_not_left_the_start_say_so() -> None:
    """Here a small error, R̂ near 1 and a steady loss all hide that the value is 30 % too low."""
    estimate, messages = quietly(
        *linear_network((10, 8, 8, 10), 3), NO_DATA, inverse_temperature=1e7
    )
    assert not is_near(estimate, 36.5)
    assert estimate.r_hat < 1.1
    (message,) = messages
    assert "have not arrived" in message
    assert "Raise `num_steps`" in message


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_quadratic(options: dict) -> None:
    """Over 16 repeats, so that a bias of 2 % would show."""
    many = repeated(16, quadratic, jnp.zeros(20), NO_DATA, inverse_temperature=1e4, **options)
    error = many.value.std(ddof=1) / 4
    assert error < 0.1
    np.testing.assert_allclose(many.value.mean(), of_quadratic(CURVATURES, 1e4, 1), atol=4 * error)


def test_the_bias_of_a_given_step_size_is_that_of_unadjusted_steps() -> None:
    """In closed form: ½ Σ nβh / (a (1 − εa/4)), with a = nβh + γ; and it is what is subtracted."""
    curvatures, beta, scope, size = np.array([1.0, 3.0, 10.0]), 100.0, 20.0, 1.5e-3

    def loss(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.sum(jnp.asarray(curvatures, jnp.float32) * params**2)

    many = repeated(
        *(8, loss, jnp.zeros(3), NO_DATA),
        inverse_temperature=beta,
        scope=scope,
        method="sgld",
        step_size=size,
        num_steps=8000,
        num_chains=16,
    )
    np.testing.assert_allclose(many.step_size, size, rtol=1e-5)
    error = many.value.std(ddof=1) / 8**0.5
    assert error < 0.01
    exact, stiffness = of_quadratic(curvatures, beta, scope), beta * curvatures + scope
    biased = 0.5 * np.sum(beta * curvatures / (stiffness * (1 - size * stiffness / 4)))
    assert biased > 1.1 * exact
    raw = beta * many.trace[..., 4000:].mean(axis=(1, 2))
    np.testing.assert_allclose(raw.mean(), biased, atol=5 * error)
    np.testing.assert_allclose(many.value + many.step_bias, raw, rtol=1e-4)
    np.testing.assert_allclose(many.value.mean(), exact, atol=5 * error)


@pytest.mark.parametrize("options", [METHODS[0], METHODS[2]], ids=str)
def test_sums_of_powers(options: dict) -> None:
    """Σ c w^(2k) has Σ 1/(2k) at every temperature, as γ → 0."""

    def loss(params: Any, batch: Any) -> jax.Array:
        a, b, c, _ = params
        return 3 * a**2 + jnp.sum(b**4) + 0.1 * jnp.sum(c**6)

    params = (jnp.array(0.0), jnp.zeros(4), jnp.zeros(3), jnp.zeros(2))
    estimate, _ = quietly(loss, params, NO_DATA, inverse_temperature=1e6, **options)
    assert is_near(estimate, 1 / 2 + 4 / 4 + 3 / 6)


def test_it_is_the_derivative_of_the_local_entropy() -> None:
    """−∂F/∂ln(nβ) − nβ L(w₀): of F in closed form, and of F as it is estimated."""
    scope, beta, offset = 2.0, 30.0, 0.7

    def loss(params: Any, batch: Any) -> jax.Array:
        return quadratic(params, batch) + offset

    def closed_form(log_beta: Any) -> Any:
        beta = jnp.exp(log_beta)
        log_widths = jnp.log(2 * jnp.pi / (beta * CURVATURES + scope))
        return 0.5 * jnp.sum(log_widths) - beta * offset

    def estimated(log_beta: Any) -> Any:
        return flatness.local_entropy(
            loss, params, NO_DATA, scope, inverse_temperature=jnp.exp(log_beta), num_steps=1000
        ).value

    params, point, step = jnp.zeros(20), jnp.log(beta), 0.2
    derivatives = (
        jax.grad(closed_form)(point),
        (estimated(point + step) - estimated(point - step)) / (2 * step),
    )
    estimate = coefficient(loss, params, NO_DATA, inverse_temperature=beta, scope=scope)
    for derivative, relative in zip(derivatives, (0, 0.05), strict=True):
        assert is_near(estimate, -derivative - beta * offset, relative=relative)


LOSS, MINIMUM, STACKED, EIGENVALUES = regression()
WHOLE = jax.tree.map(lambda leaf: leaf.reshape(1, 1024, *leaf.shape[2:]), STACKED)
BETA = 1024 / np.log(1024)
EXACT = of_quadratic(EIGENVALUES, BETA, 1.0)


class Loader:
    """Ragged batches, again and again: 700 and 324 examples."""

    def __iter__(self) -> Any:
        whole = jax.tree.map(lambda leaf: leaf[0], WHOLE)
        for part in (slice(0, 700), slice(700, None)):
            yield jax.tree.map(lambda leaf, part=part: np.asarray(leaf[part]), whole)


@pytest.mark.parametrize("options", [METHODS[0], METHODS[2]], ids=str)
def test_data_of_every_kind_count_their_examples(options: dict) -> None:
    def masked(params: Any, batch: Any) -> jax.Array:
        x, y, mask = batch
        return 0.5 * jnp.sum(mask * (x @ params - y) ** 2) / mask.sum()

    def pad(leaf: jax.Array) -> jax.Array:
        filled = jnp.full((34, 40, *leaf.shape[2:]), 7.0, leaf.dtype)  # two of them empty
        return filled.at[:32, :32].set(leaf)

    mask = jnp.zeros((34, 40)).at[:32, :32].set(1)
    data = {
        "stacked": (LOSS, jax.tree.map(np.asarray, STACKED), None, 2000),
        "padded": (masked, (*map(pad, STACKED), mask), lambda batch: batch[2].sum(), 2000),
        "ragged": (LOSS, Loader(), None, 400),
    }
    for loss, batches, batch_size, num_steps in data.values():
        estimate, _ = quietly(
            loss, MINIMUM, batches, batch_size=batch_size, num_steps=num_steps, **options
        )
        np.testing.assert_allclose(estimate.inverse_temperature, BETA, rtol=1e-6)
        assert is_near(estimate, EXACT)
        assert estimate.standard_error < 0.1 * EXACT


@pytest.mark.parametrize("options", [METHODS[0], METHODS[2]], ids=str)
@pytest.mark.parametrize("stacked", [True, False])
def test_batches_count_by_their_weight(stacked: bool, options: dict) -> None:
    """Nine of curvature 1 and one of curvature 9: the mean is 1.8, and not 5."""
    batches: Any = {"curvature": jnp.array([1.0, 9.0]), "weight": jnp.array([9.0, 1.0])}
    if not stacked:
        batches = [jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in (0, 1)]
    estimate, _ = quietly(
        lambda params, batch: 0.5 * batch["curvature"] * jnp.sum(params**2),
        *(jnp.zeros(20), batches),
        inverse_temperature=10.0,
        scope=10.0,
        batch_size=lambda batch: batch["weight"],
        num_steps=600,
        **options,
    )
    assert is_near(estimate, of_quadratic([1.8] * 20, 10, 10))
    assert not is_near(estimate, of_quadratic([5.0] * 20, 10, 10))


def test_mini_batches_hardly_add_to_the_error_where_chains_stay_near() -> None:
    """The noise of the batches' slopes at w₀ is taken out: the error is that of whole batches."""
    options = {"method": "sgld", "step_size": 2e-4, "num_steps": 4000, "precondition": False}
    mini, whole = (repeated(8, LOSS, MINIMUM, data, **options) for data in (STACKED, WHOLE))
    noise = BETA * (mini.trace - whole.trace)[..., 2000:].std()
    assert mini.value.std(ddof=1) < 2.5 * whole.value.std(ddof=1)
    assert noise < 2 * BETA * whole.trace[..., 2000:].std()
    for many in (mini, whole):
        error = many.value.std(ddof=1) / 8**0.5
        np.testing.assert_allclose(many.value.mean(), EXACT, atol=5 * error)


CASES = coverage.cases()
CROSSINGS = ("w₁²w₂²", "w₁²w₂⁴")
COVERED = {name: case for name, case in CASES.items() if name not in CROSSINGS} | {
    "unlike batches": coverage.Case(
        lambda params, batch: 0.5 * batch * jnp.sum(params**2),
        *(jnp.zeros(20), jnp.array([0.2, 1.8]), 1e3, of_quadratic([1.0] * 20, 1e3, 1), "sgld"),
    )
}


def covered(
    case: coverage.Case, repeats: int, steps: int, shares: tuple[float, float] = (0.68, 0.95)
) -> np.ndarray:
    """How often the truth is within one and two standard errors: in these shares, or more.

    Returns the estimates over the truth.
    """
    many = coverage.estimates(case, repeats, steps)
    for got, share in zip(coverage.within(many, case.exact), shares, strict=True):
        assert got > share - 3 * np.sqrt(share * (1 - share) / repeats)
    # The error is not merely large.
    assert many.standard_error.mean() < 2 * many.value.std()
    # All is well, and no alarm is false more than once in a while.
    alarms = (many.r_hat > 1.1) | (jnp.abs(many.drift) > 4.1) | (many.departure > 4.1)
    assert alarms.mean() <= 0.05
    return np.asarray(many.value) / case.exact


@pytest.mark.parametrize("name", COVERED)
def test_the_error_bar_is_true(name: str) -> None:
    covered(COVERED[name], 100, 800)


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_the_error_bar_is_true_at_defaults(name: str) -> None:
    covered(COVERED[name], 400, 2000)


@pytest.mark.parametrize("name", CROSSINGS)
def test_the_error_bar_is_nearly_true_on_normal_crossings(name: str) -> None:
    """Excursions far along an arm are rare, and estimates without one a little low; the shares are
    those of `coverage.md`.
    """
    ratios = covered(CASES[name], 100, 2000, shares=(0.6, 0.87))
    assert abs(ratios.mean() - 1) < 0.02 + 3 * ratios.std() / 10


@pytest.mark.slow
@pytest.mark.parametrize("name", CROSSINGS)
def test_long_chains_reach_the_ends_of_normal_crossings(name: str) -> None:
    ratios = covered(CASES[name], 100, 16_000, shares=(0.6, 0.9))
    assert abs(ratios.mean() - 1) < 0.005 + 3 * ratios.std() / 10


def test_the_error_counts_what_chains_have_in_common_and_where_they_differ() -> None:
    """Autoregressive series, whose mean has an error in closed form: √((1 + φ)/(1 − φ)/N)."""
    rng = np.random.default_rng(0)
    memory, shape = 0.9, (200, 8, 1000)
    series = np.empty(shape)
    series[..., 0] = rng.normal(size=shape[:2])
    for i in range(1, shape[2]):
        noise = rng.normal(size=shape[:2])
        series[..., i] = memory * series[..., i - 1] + np.sqrt(1 - memory**2) * noise
    errors = jax.vmap(_convergence.standard_error)(jnp.asarray(series))
    exact = np.sqrt((1 + memory) / (1 - memory) / (8 * 1000))
    np.testing.assert_allclose(errors.mean(), exact, rtol=0.1)
    apart = series[0] + 5 * np.arange(8)[:, None]
    assert _convergence.standard_error(apart) > 0.8 * 5 * np.arange(8).std(ddof=1) / 8**0.5
    assert _convergence.standard_error(np.ones((4, 10))) == 0


def test_the_error_counts_slow_excursions_of_small_weight() -> None:
    """A hundredth of the variance, which makes two thirds of the error's square."""
    rng = np.random.default_rng(0)
    shape = (50, 8, 16_000)
    fast, slow = (
        weight * lfilter([np.sqrt(1 - memory**2)], [1, -memory], rng.normal(size=shape))
        for weight, memory in ((1.0, 0.8), (0.1, 0.999))
    )
    exact = np.hypot(1 / np.sqrt(0.2 / 1.8), 0.1 / np.sqrt(0.001 / 1.999)) / np.sqrt(8 * shape[2])
    errors = jax.lax.map(_convergence.standard_error, jnp.asarray(fast + slow))
    assert 0.85 * exact < jnp.sqrt(jnp.mean(errors**2)) < 1.05 * exact


def test_r_hat_and_drift_are_as_defined() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4, 101)) + rng.normal(size=(4, 1))
    halves = np.concatenate([samples[:, :50], samples[:, 50:100]])
    within, between = halves.var(axis=1, ddof=1).mean(), 50 * halves.mean(axis=1).var(ddof=1)
    expected = np.sqrt((49 / 50 * within + between / 50) / within)
    np.testing.assert_allclose(_convergence.split_r_hat(samples), expected, rtol=1e-5)
    rise = samples[:, 50:100].mean(1) - samples[:, :50].mean(1)
    expected = rise.mean() / (rise.std(ddof=1) / 2)
    np.testing.assert_allclose(_convergence.drift(samples), expected, rtol=1e-4)
    still = np.ones((4, 10))
    assert _convergence.split_r_hat(still) == 1
    assert _convergence.drift(still) == 0
    stuck = still * np.arange(4)[:, None]  # each at a place of its own
    assert _convergence.split_r_hat(stuck) == np.inf


def sloped(params: Any, batch: Any) -> jax.Array:
    return jnp.sum((params - 1) ** 2)


def steep(params: Any, batch: Any) -> jax.Array:
    return jnp.sum(params**2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": sloped}, "`params` is no minimum"),
        ({"method": "sgld", "step_size": 1.0}, "8 of 8 chains diverged.*Lower `step_size`"),
        ({"step_size": 1.0}, "Only 0% of the proposals were accepted. Lower `step_size`"),
        ({"method": "sgld", "step_size": 9e-4}, "The finite step size adds"),
        ({"step_size": 1e-8}, "have not arrived.*Raise `num_steps`"),
        (
            {"loss": lambda params, batch: steep(params, batch) + 3e4},
            "The digits of the loss.*float64",
        ),
    ],
    ids=["minimum", "diverged", "stuck", "biased", "short", "digits"],
)
def test_what_speaks_against_the_value_is_warned_of(options: dict, message: str) -> None:
    options = {"loss": steep, "inverse_temperature": 1000.0, "num_steps": 400} | options
    loss = options.pop("loss")
    _, messages = quietly(loss, jnp.zeros(3), NO_DATA, **options)
    assert len([m for m in messages if re.search(message, m)]) == 1


def test_a_warning_names_the_line_of_the_call() -> None:
    with pytest.warns(UserWarning, match="have not arrived") as caught:
        coefficient(steep, jnp.zeros(3), NO_DATA, inverse_temperature=1.0, scope=1e-4, num_steps=20)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("method", ["metropolis", "sgld"])
def test_jit_gives_the_same_and_warns_when_asked(method: str) -> None:
    options = {"inverse_temperature": 100.0, "num_steps": 40, "method": method, "scope": 1e-3}

    def run(params: Any) -> flatness.LearningCoefficient:
        return coefficient(quadratic, params, jnp.zeros((1, 1)), **options)

    eager, messages = quietly(quadratic, jnp.zeros(20), jnp.zeros((1, 1)), **options)
    assert messages
    compiled = jax.jit(run)(jnp.zeros(20))
    np.testing.assert_allclose(compiled.trace, eager.trace, rtol=1e-3, atol=1e-6)
    assert compiled.trace.shape == (8, 40)
    assert compiled.chains.shape == (8,)
    with pytest.warns(UserWarning, match="have not arrived"):
        compiled.check()


def test_each_of_a_stack_is_checked() -> None:
    """Chains of 200 steps arrive in a small neighbourhood, and not in a large one."""

    def run(scope: Any) -> flatness.LearningCoefficient:
        options = {"inverse_temperature": 100.0, "num_steps": 200, "scope": scope}
        return coefficient(quadratic, jnp.zeros(20), jnp.zeros((1, 1)), **options)

    stack = jax.vmap(run)(jnp.array([1e4, 1e-6]))
    assert stack.value.shape == (2,)
    with pytest.warns(UserWarning, match="have not arrived") as caught:
        stack.check()
    assert [str(warning.message)[:8] for warning in caught] == ["At [1]: "]
    assert caught[0].filename == __file__


def test_hyper_parameters_may_be_traced() -> None:
    def run(beta: Any, scope: Any, step_size: Any) -> Any:
        return coefficient(
            *(quadratic, jnp.zeros(20), NO_DATA),
            inverse_temperature=beta,
            scope=scope,
            step_size=step_size,
            num_steps=600,
        )

    estimate = jax.jit(run)(100.0, 2.0, 2e-3)
    assert is_near(estimate, of_quadratic(CURVATURES, 100, 2), relative=0.1)


def test_progress_is_told_and_changes_nothing() -> None:
    told = []
    options = {"inverse_temperature": 100.0, "num_steps": 150}
    plain, _ = quietly(quadratic, jnp.zeros(20), NO_DATA, **options)
    shown, _ = quietly(
        quadratic, jnp.zeros(20), NO_DATA, progress=lambda *args: told.append(args), **options
    )
    np.testing.assert_allclose(shown.trace, plain.trace, rtol=1e-3, atol=1e-6)
    assert told == [("Langevin steps", i, 100) for i in range(101)]


def test_half_precision_is_left_for_single() -> None:
    """A chain's steps would be lost in bfloat16: at 1 its digits are 2⁻⁸ apart."""

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.sum((params - 1) ** 2)

    params = jnp.ones(6, jnp.bfloat16)
    estimate = coefficient(loss, params, NO_DATA, inverse_temperature=1e6)
    assert estimate.value.dtype == jnp.float32
    assert is_near(estimate, 3.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`inverse_temperature` must be given where `batches` count 1 examples"),
        ({"inverse_temperature": -1.0}, r"`inverse_temperature` must be .* in \(0, inf\); got -1"),
        ({"scope": 0.0}, r"`scope` must be .* in \(0, inf\); got 0\.0"),
        ({"step_size": 0.0}, r"`step_size` must be .* in \(0, inf\); got 0\.0"),
        ({"num_chains": 1}, r"`num_chains` must be an integer >= 2; got 1"),
        ({"num_steps": 2.0}, r"`num_steps` must be an integer >= 8; got 2\.0"),
        ({"method": "hmc"}, r"`method` must be 'metropolis' or 'sgld'; got 'hmc'"),
        ({"batches": []}, "`batches` must hold at least one batch"),
        ({"batches": iter([None])}, "`batches` must be an iterable for many passes"),
        ({"params": {"a": jnp.arange(3)}}, r"`params\['a'\]` must have a real floating dtype"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_errors_say_what_to_do(options: dict, message: str) -> None:
    defaults = {"params": jnp.zeros(2), "batches": NO_DATA}
    if options:
        defaults["inverse_temperature"] = 10.0
    arguments = defaults | options
    if "batches" in options:
        del arguments["inverse_temperature"]
    with pytest.raises(ValueError, match=message):
        coefficient(steep, **arguments)


SHARDED = """
import os
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=4"
import warnings
import jax, jax.numpy as jnp, numpy as np
# Programs that wait for each other's devices starve where cores are fewer than devices.
jax.config.update("jax_cpu_enable_async_dispatch", False)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from entropy_sgd_jax.flatness import _chains, local_learning_coefficient

mesh = Mesh(np.array(jax.devices()), ("d",))
split = NamedSharding(mesh, P(None, "d"))
params = jnp.zeros((16, 4096))
start = _chains.zeros(jax.device_put(params, split), 8)
assert start.addressable_shards[0].data.shape == (8, 16, 1024)

def run(params, method):
    return local_learning_coefficient(
        lambda w, batch: jnp.sum(w ** 2), params, jnp.zeros((1, 1)), method=method,
        inverse_temperature=10.0, num_steps=20)

for method in ("metropolis", "sgld"):
    on_one, on_all = (
        jax.jit(lambda p: run(p, method)).lower(where).compile()
        for where in (params, jax.device_put(params, split)))
    one, all_ = on_one(params), on_all(jax.device_put(params, split))
    np.testing.assert_allclose(one.trace, all_.trace, rtol=1e-3)
    memory = [program.memory_analysis().temp_size_in_bytes for program in (on_one, on_all)]
    assert memory[1] < memory[0] / 2, memory  # the chains are split too
"""


def test_sharded_parameters_keep_the_chains_sharded() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
