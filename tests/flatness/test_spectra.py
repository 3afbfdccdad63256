"""Spectra against dense matrices, in float64, and random estimates against their own error bars."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import ndtri

from entropy_sgd_jax import flatness
from entropy_sgd_jax.flatness import _estimates, _lanczos, _top, _vectors
from tests.core.helpers import double_precision
from tests.flatness.cases import Case, network, plain, quadratic, rotated

KEYS = 200  # over which estimates and their errors are compared
# The mean of KEYS squares of Student's t with 31 degrees of freedom is 31/29 ± 0.11: 4.5 of that.
SQUARES = (0.55, 1.6)


@pytest.fixture(autouse=True)
def x64(request: pytest.FixtureRequest) -> Iterator[None]:
    if "float32" in request.node.name:
        yield
        return
    with double_precision():
        yield


@functools.cache
def case(hidden: int) -> tuple[Case, np.ndarray, np.ndarray]:
    """A network of 8 · hidden parameters, its Hessian and the eigenvalues."""
    net = network(hidden)
    hessian = net.hessian()
    return net, hessian, np.linalg.eigvalsh(hessian)


def assert_within_errors(estimates: Any, truth: Any) -> None:
    """Squared deviations over squared errors are 1 in the mean over the keys."""
    squares = ((estimates.value - truth) / estimates.standard_error) ** 2
    assert SQUARES[0] < squares.mean() < SQUARES[1]


# The matrix itself


@pytest.mark.parametrize("which", ["batches", "ragged"])
def test_products_are_those_of_the_dense_matrix(which: str) -> None:
    net, hessian, _ = case(7)
    vector = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), net.params)
    batches = getattr(net, which)
    product = flatness.hessian_vector_product(plain(net.loss), net.params, vector, batches)
    assert jax.tree.structure(product) == jax.tree.structure(net.params)
    expected = hessian @ ravel_pytree(vector)[0]
    np.testing.assert_allclose(ravel_pytree(product)[0], expected, atol=1e-12)


def dense_gauss_newton(net: Case) -> np.ndarray:
    flat, unravel = ravel_pytree(net.params)
    outputs = net.loss.model(net.params, net.whole)
    jacobian = jax.jacobian(lambda w: net.loss.model(unravel(w), net.whole))(flat)
    curvature = jax.hessian(net.loss.criterion)(outputs, net.whole)
    return np.asarray(jnp.einsum("aip,aibj,bjq->pq", jacobian, curvature, jacobian))


def test_gauss_newton() -> None:
    net, hessian, _ = case(7)
    dense = dense_gauss_newton(net)
    assert abs(dense - hessian).max() > 0.01
    vector = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), net.params)
    product = flatness.gauss_newton_vector_product(
        net.loss.model, net.loss.criterion, net.params, vector, net.ragged
    )
    np.testing.assert_allclose(
        ravel_pytree(product)[0], dense @ ravel_pytree(vector)[0], atol=1e-12
    )
    spectrum = flatness.exact_spectrum(net.loss, net.params, net.batches)
    np.testing.assert_allclose(spectrum, np.linalg.eigvalsh(dense), atol=1e-10)
    top = flatness.top_eigenvalues(net.loss, net.params, net.batches, k=3)
    np.testing.assert_allclose(top, np.linalg.eigvalsh(dense)[:-4:-1], rtol=1e-6)


@pytest.mark.parametrize(("hidden", "which"), [(7, "ragged"), (100, "batches")])
def test_exact_spectrum(hidden: int, which: str) -> None:
    net, _, eigenvalues = case(hidden)
    spectrum = flatness.exact_spectrum(plain(net.loss), net.params, getattr(net, which))
    np.testing.assert_allclose(spectrum, eigenvalues, atol=1e-8 * abs(eigenvalues).max())


def test_exact_spectrum_reports_progress_and_memory() -> None:
    net, _, eigenvalues = case(7)
    seen = []
    spectrum = flatness.exact_spectrum(
        plain(net.loss), net.params, net.batches, block_size=20, progress=lambda *a: seen.append(a)
    )
    np.testing.assert_allclose(spectrum, eigenvalues, atol=1e-12)
    assert [(done, total) for _, done, total in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert "GiB" in seen[0][0]
    with pytest.raises(ValueError, match=r"`memory_limit` must be at least 0.000117 GiB .* 1e-05"):
        flatness.exact_spectrum(net.loss, net.params, net.batches, memory_limit=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the limit is of the CPU's LAPACK")
def test_exact_spectrum_names_what_the_eigensolver_cannot_take() -> None:
    params, batches = jnp.zeros(32_767), jnp.zeros((1, 1))
    with pytest.raises(ValueError, match=r"`params` must have at most 32,766 .* got 32,767"):
        flatness.exact_spectrum(lambda x, b: jnp.sum(x), params, batches, memory_limit=1e6)


def test_spectrum_of_one_layer() -> None:
    net, hessian, _ = case(7)
    of_second = slice(5 * 7, None)

    def loss(second: Any, batch: Any) -> Any:
        return net.loss(net.params | {"second": second}, batch)

    spectrum = flatness.exact_spectrum(loss, net.params["second"], net.batches)
    expected = np.linalg.eigvalsh(hessian[of_second, of_second])
    np.testing.assert_allclose(spectrum, expected, atol=1e-12)


# The largest eigenvalues


@pytest.mark.parametrize(
    ("hidden", "k", "which"), [(7, 3, "ragged"), (50, 60, "ragged"), (100, 20, "batches")]
)
def test_top_eigenvalues(hidden: int, k: int, which: str) -> None:
    net, hessian, eigenvalues = case(hidden)
    top, eigenvectors = flatness.top_eigenvalues(
        plain(net.loss), net.params, getattr(net, which), k, return_eigenvectors=True
    )
    floor = 1e-12 * abs(eigenvalues).max()
    np.testing.assert_allclose(top, eigenvalues[::-1][:k], rtol=1e-6, atol=floor)
    rows = np.stack([ravel_pytree(jax.tree.map(lambda v: v[i], eigenvectors))[0] for i in range(k)])  # noqa: B023
    np.testing.assert_allclose(rows @ rows.T, np.eye(k), atol=1e-10)
    errors = np.linalg.norm(rows @ hessian - top[:, None] * rows, axis=1)
    assert (errors <= 2e-6 * abs(top) + 1e-10).all()


@functools.partial(jax.jit, static_argnums=1)
def top_of_matrix(hessian: Any, k: int) -> jax.Array:
    """Those of ½ wᵀ H w."""
    size = len(hessian)
    loss = lambda params, batch: 0.5 * params @ batch @ params  # noqa: E731
    return flatness.top_eigenvalues(loss, jnp.zeros(size), hessian[None], k, tolerance=1e-9)


@pytest.mark.parametrize(
    ("eigenvalues", "k"),
    [
        ([3.0], 1),
        (np.ones(5), 5),
        (np.zeros(100), 6),
        (np.ones(100), 6),
        (-np.arange(1.0, 101), 6),  # all negative
        (np.linspace(-10, 5, 100), 6),  # the largest magnitudes at the other end
        ([5.0] * 3 + [4.99] * 2 + [1.0] * 95, 6),
        ([7.0] + [2.0] * 4 + list(np.linspace(-3, 1, 95)), 6),
        ([2.0] * 2 + list(2 - np.geomspace(1e-2, 5, 98)), 6),
    ],
)
def test_repeated_and_negative_eigenvalues(eigenvalues: Any, k: int) -> None:
    top = top_of_matrix(rotated(eigenvalues), k)
    np.testing.assert_allclose(top, np.sort(eigenvalues)[::-1][:k], rtol=1e-8, atol=1e-12)


def test_what_has_not_converged_is_not_a_number() -> None:
    top = flatness.top_eigenvalues(
        quadratic(np.linspace(0, 1, 300)), jnp.zeros(300), [None], 4, max_products=1
    )
    assert np.isnan(top[1:]).all()


# The trace


def test_trace_of_a_diagonal_matrix_is_exact() -> None:
    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(jnp.arange(10.0) * params**2)

    value, error = flatness.hessian_trace(
        loss, jnp.ones(10), [None], num_probes=3, method="hutchinson"
    )
    assert value == 90
    assert error == 0


def test_hutchinsons_trace_within_its_errors() -> None:
    net, hessian, _ = case(7)
    estimates = jax.jit(
        jax.vmap(
            lambda key: flatness.hessian_trace(
                plain(net.loss),
                net.params,
                net.batches,
                num_probes=32,
                method="hutchinson",
                key=key,
            )
        )
    )(jnp.arange(KEYS))
    assert_within_errors(estimates, np.trace(hessian))
    off_diagonal = hessian - np.diag(np.diag(hessian))
    variance = 2 * (off_diagonal**2).sum() / 32  # of one estimate, by theory
    np.testing.assert_allclose((estimates.standard_error**2).mean(), variance, rtol=0.2)
    np.testing.assert_allclose(estimates.value.var(), variance, rtol=4.5 * np.sqrt(2 / KEYS))


@pytest.mark.parametrize("which", ["batches", "ragged"])
def test_trace_of_few_parameters_is_exact(which: str) -> None:
    net, hessian, _ = case(7)
    value, error = flatness.hessian_trace(
        plain(net.loss), net.params, getattr(net, which), num_probes=56
    )
    np.testing.assert_allclose(value, np.trace(hessian), rtol=1e-12)
    assert error == 0


SPECTRA = {
    "fast": 0.7 ** np.arange(100),
    "slow": 1 / np.arange(1, 101),
    "flat": 1 + 0.1 * np.cos(np.arange(100)),
    "indefinite": np.concatenate([[5.0, 3.0, -2.0], np.linspace(-0.1, 0.1, 97)]),
    "rank 5": np.repeat([2.0, -1.0, 0.0], [3, 2, 95]),
    "rank 15": np.repeat([2.0, -1.0, 0.0], [10, 5, 85]),  # one less than the random vectors
    "zero": np.zeros(100),
}


@functools.cache
def traces_of_spectra() -> dict[str, flatness.Estimate]:
    """Over the keys, of rotated matrices, by 32 products each."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def traces(hessian: Any, key: Any) -> Any:
        return flatness.hessian_trace(
            lambda params, batch: 0.5 * params @ batch @ params,
            *(jnp.zeros(100), hessian[None]),
            key=key,
        )

    return {name: traces(rotated(spectrum), jnp.arange(KEYS)) for name, spectrum in SPECTRA.items()}


@pytest.mark.parametrize("name", ["fast", "slow", "flat", "indefinite"])
def test_xtrace_within_its_errors(name: str) -> None:
    value, error = traces_of_spectra()[name]
    deviations = value - SPECTRA[name].sum()
    assert abs(deviations.mean()) < 4.5 * deviations.std() / np.sqrt(KEYS)
    # Two errors of 16 estimates cover 0.936 ± 0.017 of normal deviations: no less than 3.5 of that.
    assert (abs(deviations) < 2 * error).mean() > 0.876
    assert 0.7 < (error**2).mean() / (deviations**2).mean() < 2.5


def test_xtrace_beats_hutchinson_where_eigenvalues_decay() -> None:
    """By theory, Hutchinson's variance is twice the squares off the diagonal over the probes."""
    for name, factor in (("fast", 30), ("slow", 2.5), ("indefinite", 5)):
        hessian = np.array(rotated(SPECTRA[name]))
        np.fill_diagonal(hessian, 0)
        mean_square = ((traces_of_spectra()[name].value - SPECTRA[name].sum()) ** 2).mean()
        assert factor * np.sqrt(mean_square) < np.sqrt(2 * (hessian**2).sum() / 32)


@pytest.mark.parametrize("name", ["rank 5", "rank 15", "zero"])
def test_xtrace_of_a_low_rank_is_exact(name: str) -> None:
    value, error = traces_of_spectra()[name]
    np.testing.assert_allclose(value, SPECTRA[name].sum(), rtol=1e-12)
    assert (abs(value - SPECTRA[name].sum()) <= 5 * error).mean() > 0.95  # which is rounding
    assert error.max() < 1e-12


def test_xtrace_streams_and_leaves_an_odd_product_out() -> None:
    net, hessian, _ = case(7)
    estimates = [
        flatness.hessian_trace(plain(net.loss), net.params, batches, num_probes=n, key=1)
        for batches, n in ((net.batches, 14), (net.ragged, 14), (net.batches, 15))
    ]
    np.testing.assert_allclose(estimates[1], estimates[0], rtol=1e-9)
    assert estimates[2] == estimates[0]
    value, error = estimates[0]
    assert 0 < abs(value - np.trace(hessian)) < 5 * error


# The density


def density(hidden: int, key: Any = 0, **settings: Any) -> flatness.SpectralDensity:
    net, _, _ = case(hidden)
    return flatness.spectral_density(plain(net.loss), net.params, net.batches, key=key, **settings)


def test_quadrature_is_exact_on_polynomials() -> None:
    few, many = density(50, num_steps=4), density(50, num_steps=60)
    assert few.nodes.shape == few.weights.shape == (8, 4)
    np.testing.assert_allclose(few.weights.sum(axis=1), 1, rtol=1e-12)
    for power in range(8):
        short, long = ((rules.weights * rules.nodes**power).sum(axis=1) for rules in (few, many))
        np.testing.assert_allclose(short, long, rtol=1e-9)


def test_no_ghosts() -> None:
    _, _, eigenvalues = case(50)
    rules = density(50, num_steps=150)
    scale = abs(eigenvalues).max()
    for extreme in (eigenvalues[-1], eigenvalues[-2], eigenvalues[0]):
        close = abs(rules.nodes - extreme) < 1e-7 * scale
        assert (close.sum(axis=1) == 1).all()


def test_moments_and_density_within_their_errors() -> None:
    _, _, eigenvalues = case(7)
    grid, width = np.linspace(-0.1, 0.3, 5), 0.05
    kernel = np.exp(-0.5 * ((grid - eigenvalues[:, None]) / width) ** 2)
    kernel /= width * np.sqrt(2 * np.pi)

    @jax.jit
    @jax.vmap
    def estimates(key: Any) -> Any:
        rules = density(7, key=key, num_probes=32, num_steps=30)
        moments = [rules.expectation(lambda x, p=p: x**p) for p in (1, 2, 3)]
        return moments, rules.density_estimate(grid, width)

    moments, densities = estimates(jnp.arange(KEYS))
    for power, moment in zip((1, 2, 3), moments, strict=True):
        assert_within_errors(moment, (eigenvalues**power).mean())
    for point in range(5):
        at_point = flatness.Estimate(*(part[:, point] for part in densities))
        assert_within_errors(at_point, kernel[:, point].mean())


def test_density_integrates_to_one() -> None:
    rules = density(50, num_steps=30)
    grid = np.linspace(rules.nodes.min() - 1, rules.nodes.max() + 1, 4001)
    values = rules.density(grid, 0.05)
    assert values.shape == grid.shape
    np.testing.assert_allclose(values.sum() * (grid[1] - grid[0]), 1, rtol=1e-6)


@pytest.mark.parametrize("steps", [3, 10, 50])
def test_nodes_that_are_not_needed_weigh_nothing(steps: int) -> None:
    eigenvalues = np.repeat([-2.0, 0.0, 1.0], 10)
    rules = flatness.spectral_density(
        quadratic(eigenvalues), jnp.zeros(30), [None], num_probes=4, num_steps=steps
    )
    assert rules.nodes.shape == (4, steps)
    for eigenvalue in (-2.0, 0.0, 1.0):
        near = rules.weights * (abs(rules.nodes - eigenvalue) < 1e-9)
        others = near.sum(axis=1)
        assert ((others > 0.05) & (others < 0.7)).all()
    off = np.min(abs(rules.nodes[..., None] - np.array([-2.0, 0, 1])), axis=-1) > 1e-9
    assert (rules.weights * off).max() < 1e-20
    np.testing.assert_allclose(rules.weights.sum(axis=1), 1, rtol=1e-9)


def test_a_rule_longer_than_the_matrix_keeps_to_its_range() -> None:
    eigenvalues = np.array([2.0, 3.0, 5.0])
    rules = flatness.spectral_density(
        lambda params, batch: 0.5 * jnp.sum(eigenvalues * params**2), jnp.ones(3), [None]
    )
    np.testing.assert_allclose([rules.nodes.min(), rules.nodes.max()], [2, 5], rtol=1e-6)
    mean = rules.expectation(jnp.log).value
    np.testing.assert_allclose(mean, np.log(eigenvalues).mean(), rtol=1e-6)


def test_random_vectors_are_those_of_one_array() -> None:
    tree = {"large": jnp.zeros((100, 50)), "small": jnp.zeros(3)}
    key = jax.random.split(jax.random.key(0))[0]
    whole = _vectors.draw("gaussian", key, jnp.zeros(5003))
    parts = _vectors.draw("gaussian", key, tree)
    np.testing.assert_array_equal(whole, np.concatenate([parts["large"].ravel(), parts["small"]]))


def test_float32() -> None:
    with double_precision():
        eigenvalues = np.linalg.eigvalsh(network(50).hessian())
    net = network(50, np.float32)
    loss, batches = plain(net.loss), net.batches
    exact = flatness.exact_spectrum(loss, net.params, batches)
    top = flatness.top_eigenvalues(loss, net.params, batches, 5)
    rules = flatness.spectral_density(loss, net.params, batches, num_steps=20)
    trace = flatness.hessian_trace(loss, net.params, batches)
    assert {x.dtype for x in (exact, top, rules.nodes, trace.value)} == {np.dtype(np.float32)}
    scale = abs(eigenvalues).max()
    np.testing.assert_allclose(exact, eigenvalues, atol=1e-5 * scale)
    np.testing.assert_allclose(top, eigenvalues[::-1][:5], atol=1e-5 * scale)
    np.testing.assert_allclose(rules.nodes.max(axis=1), eigenvalues[-1], rtol=1e-4)
    assert abs(trace.value - eigenvalues.sum()) < 5 * trace.standard_error


@pytest.mark.parametrize("count", [2, 3, 30])
def test_the_standard_error_is_that_of_independent_samples(count: int) -> None:
    samples = 1e30 * np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    value, error = _estimates.of_samples(jnp.asarray(samples))
    wide = samples.astype(np.float64)
    np.testing.assert_allclose(value, wide.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(error, wide.std(axis=0, ddof=1) / count**0.5, rtol=1e-5)


def test_a_single_sample_has_no_error() -> None:
    value, error = flatness.hessian_trace(
        lambda params, batch: jnp.sum(params**2), jnp.ones(5), [None], num_probes=1,
        method="hutchinson",
    )  # fmt: skip
    assert value == 10
    assert np.isnan(error)


@pytest.mark.parametrize("num_probes", [1, 2, 3])
def test_too_few_products_for_xtrace_are_hutchinsons(num_probes: int) -> None:
    with double_precision():
        left, right = (
            flatness.hessian_trace(
                quadratic(np.arange(10.0)), jnp.zeros(10), [None], num_probes=num_probes,
                method=method,
            )
            for method in ("xtrace", "hutchinson")
        )  # fmt: skip
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("residual", "converged", "settled"),
    [
        (3e-6, True, True),  # 3.9 is found to a relative 1e-6
        (0.05, True, True),  # below 4 for sure
        (0.2, True, False),  # perhaps above 4
    ],
)
def test_the_next_eigenvalue_must_be_known_to_be_below(
    residual: float, converged: bool, settled: bool
) -> None:
    """Of five rows, the last of which, at 3.9, has the whole residual."""
    with double_precision():
        found = assessed([5.0, 4.0, 3.0, 2.0, 3.9], residual)
        assert found.converged.all() == converged
        assert found.probed == settled
        assert not found.done
        assert assessed([5.0, 4.0, 3.0, 2.0, 3.9], residual, probed=True).done == settled
        # The second largest itself, to one and to two times its tolerance.
        for times in (0.99, 2.0):
            last = assessed([5.0, 3.0, 2.0, 1.0, 4.0], times * 4e-6)
            assert last.converged.tolist() == [True, times < 1]


def assessed(diagonal: list[float], residual: float, probed: bool = False) -> Any:
    search = _top._nothing_found(jnp.zeros(9), jax.random.key(0), 5, 2)
    krylov = search.krylov._replace(
        projected=jnp.diag(jnp.array(diagonal)), residual=jnp.asarray(residual)
    )
    assert isinstance(krylov, _lanczos.Krylov)
    search = search._replace(krylov=krylov, probed=jnp.asarray(probed))
    return _top._assess(search, 1e-6, exhausted=False)


def test_every_word_is_a_finite_normal_number() -> None:
    """A large network meets the first and the last."""
    words = jnp.array([0, 2**31 - 1, 2**31, 2**32 - 1], jnp.uint32)
    low, below, above, high = _vectors._gaussian(words, np.dtype(np.float32))
    np.testing.assert_allclose([low, below], [-high, -above], rtol=1e-4)
    np.testing.assert_allclose([high, above], -ndtri([2.0**-24, 0.5 - 2.0**-24]), rtol=1e-2)
