"""The law of the Langevin chain on a quadratic loss, and the whiteness of its noise.

On f(x) = ½ (x − c)ᵀ A (x − c) the chain is linear and its noise has independent entries of unit
variance, so that mean and covariance are known in closed form along each eigenvector of A. They
are compared with samples over thousands of keys. A bound of k standard errors is missed with
probability 6e-7 (k = 5): seeds are fixed, and one of the some 300 comparisons here would fail by
bad luck for one choice of seeds in 5000.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from entropy_sgd_jax import entropic
from tests.core.recording import record_noise

STANDARD_ERRORS = 5
SAMPLES = 20_000
SOURCES = ("gaussian", "rademacher")

# A and its eigenvectors mix all coordinates, and so the leaves of the parameters.
EIGENVALUES = np.array([0.2, 1.0, 4.0])
EIGENVECTORS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
CURVATURE = EIGENVECTORS * EIGENVALUES @ EIGENVECTORS.T
CENTRE = np.array([1.0, -2.0, 0.5])
START = np.array([0.3, 0.4, -1.0])

STEP_SIZE, SCOPE, NOISE_SCALE, AVERAGING = 0.15, 0.3, 0.7, 0.4


class Law(NamedTuple):
    """Mean and covariance of (x′ − x, μ − x) along one eigenvector."""

    mean: np.ndarray  # shape (2,)
    covariance: np.ndarray  # shape (2, 2)


def law_after(
    inner_steps: int, eigenvalue: float, target: float, momentum: float = 0, nesterov: bool = False
) -> Law:
    """The law after some steps from x; `target` is c − x.

    The chain of z = (u, v, w) = (x′ − x, momentum buffer, μ − x), with g = λ (u − target):

        v ← m v + g;   d = v, or g + m v (Nesterov)
        u ← u − η′ (d + γ u) + √η′ ε ξ
        w ← (1 − α) w + α u
    """
    u, v, w = np.eye(3)  # each a row of coefficients of the old z
    offset_of_g = -eigenvalue * target
    new_v = momentum * v + eigenvalue * u
    d = eigenvalue * u + momentum * new_v if nesterov else new_v
    offset_of_d = offset_of_g * (1 + momentum if nesterov else 1)
    new_u = u - STEP_SIZE * (d + SCOPE * u)
    offset_of_u = -STEP_SIZE * offset_of_d
    transition = np.stack([new_u, new_v, (1 - AVERAGING) * w + AVERAGING * new_u])
    offset = np.array([offset_of_u, offset_of_g, AVERAGING * offset_of_u])
    kick = np.sqrt(STEP_SIZE) * NOISE_SCALE * np.array([1, 0, AVERAGING])

    mean, covariance = np.zeros(3), np.zeros((3, 3))
    for _ in range(inner_steps):
        mean = transition @ mean + offset
        covariance = transition @ covariance @ transition.T + np.outer(kick, kick)
    seen = [0, 2]
    return Law(mean[seen], covariance[np.ix_(seen, seen)])


def stationary_law(eigenvalue: float, target: float) -> Law:
    """The law of an endless chain without momentum: an autoregression and its average."""
    pull = eigenvalue + SCOPE
    memory = 1 - STEP_SIZE * pull
    variance = NOISE_SCALE**2 / (pull * (2 - STEP_SIZE * pull))
    covariance = variance * AVERAGING / (1 - (1 - AVERAGING) * memory)
    of_average = covariance * (1 + (1 - AVERAGING) * memory) / (2 - AVERAGING)
    mean = eigenvalue * target / pull
    return Law(np.array([mean, mean]), np.array([[variance, covariance], [covariance, of_average]]))


def split(point: Any) -> Any:
    return {"b": point[2], "a": point[:2]}


def join(tree: Any) -> Any:
    return jnp.append(tree["a"], tree["b"])


def grad_fn(params: Any, step: Any) -> Any:
    return split(jnp.asarray(CURVATURE, jnp.float32) @ (join(params) - CENTRE))


def optimizer(seed: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "inner_learning_rate": STEP_SIZE,
        "scope": SCOPE,
        "noise_scale": NOISE_SCALE,
        "averaging": AVERAGING,
    }
    return entropic(optax.sgd(1.0), key=seed, **settings | changes)


def sample(seeds: int = SAMPLES, **changes: Any) -> np.ndarray:
    """(x′ − x, μ − x) after one update for each seed; shape (seeds, 2, directions)."""

    def run(seed: Any) -> Any:
        tx, params = optimizer(seed, **changes), split(jnp.asarray(START, jnp.float32))
        _, state = tx.update(None, tx.init(params), params, grad_fn=grad_fn)
        return jnp.stack([join(state.langevin_iterate), join(state.langevin_average)])

    points = np.asarray(jax.jit(jax.vmap(run))(jnp.arange(seeds)), np.float64)
    return (points - START) @ EIGENVECTORS


TARGETS = (CENTRE - START) @ EIGENVECTORS


def assert_follows(samples: np.ndarray, laws: list[Law]) -> None:
    """Mean and covariance of all of (x′, μ), along and between the eigenvectors.

    The standard errors are those of a Gaussian. With Rademacher noise they are a little smaller.
    """
    flat = samples.transpose(0, 2, 1).reshape(len(samples), -1)
    mean = np.concatenate([law.mean for law in laws])
    covariance = np.zeros((mean.size, mean.size))
    for i, law in enumerate(laws):
        covariance[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = law.covariance
    variance = covariance.diagonal()

    error = np.sqrt(variance / len(flat))
    assert np.all(np.abs(flat.mean(axis=0) - mean) < STANDARD_ERRORS * error)
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / len(flat))
    around = flat - mean
    assert np.all(np.abs(around.T @ around / len(flat) - covariance) < STANDARD_ERRORS * error)


MOMENTUM = {
    "no momentum": (0.0, False),
    "plain momentum": (0.6, False),
    "nesterov momentum": (0.6, True),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("momentum", MOMENTUM)
def test_law_after_some_steps(momentum: str, source: str) -> None:
    decay, nesterov = MOMENTUM[momentum]
    inner = optax.trace(decay, nesterov) if decay else None
    samples = sample(inner_steps=12, inner_transform=inner, noise=source)
    laws = [
        law_after(12, *direction, decay, nesterov)
        for direction in zip(EIGENVALUES, TARGETS, strict=True)
    ]
    assert_follows(samples, laws)
    if source == "gaussian":
        for i, j in itertools.product(range(2), range(3)):
            law = laws[j]
            standard = (samples[:, i, j] - law.mean[i]) / np.sqrt(law.covariance[i, i])
            assert stats.kstest(standard, "norm").pvalue > 1e-4


@pytest.mark.parametrize("source", SOURCES)
def test_stationary_law(source: str) -> None:
    laws = list(map(stationary_law, EIGENVALUES, TARGETS))
    for law, eigenvalue, target in zip(laws, EIGENVALUES, TARGETS, strict=True):
        for endless, long in zip(law, law_after(300, eigenvalue, target), strict=True):
            np.testing.assert_allclose(endless, long, rtol=1e-8)
    assert_follows(sample(inner_steps=300, noise=source), laws)


def test_stationary_law_is_the_modified_gibbs_measure() -> None:
    """At ε = √2 and small η′ the variance along an eigenvector is that of exp(−f − γ/2 ‖·‖²)."""
    samples = sample(inner_steps=400, inner_learning_rate=0.02, noise_scale=np.sqrt(2))
    variance = samples[:, 0].var(axis=0)
    error = np.sqrt(2 / SAMPLES) * variance
    # Of a small step 1 / (1 − η′ (λ + γ) / 2) is left over; of the start nothing but in the
    # flattest direction, exp(−2 · 8 · 0.5).
    gibbs = 1 / (EIGENVALUES + SCOPE)
    assert np.all(np.abs(variance / gibbs - 1) < 0.05 + STANDARD_ERRORS * error / gibbs)


def test_law_of_the_parameters_after_several_updates() -> None:
    """x ← x + η (μ − x): the noise of one update is independent of the last one's."""
    learning_rate, updates, inner_steps = 0.8, 4, 5

    def run(seed: Any) -> Any:
        tx = entropic(
            optax.sgd(learning_rate),
            inner_steps=inner_steps,
            inner_learning_rate=STEP_SIZE,
            scope=SCOPE,
            noise_scale=NOISE_SCALE,
            averaging=AVERAGING,
            key=seed,
        )

        def update(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = tx.update(None, state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), state), None

        params = split(jnp.asarray(START, jnp.float32))
        (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), length=updates)
        return join(params)

    ends = np.asarray(jax.jit(jax.vmap(run))(jnp.arange(SAMPLES)), np.float64) @ EIGENVECTORS
    for i, eigenvalue in enumerate(EIGENVALUES):
        mean, variance = START @ EIGENVECTORS[:, i], 0.0
        slope = law_after(inner_steps, eigenvalue, 1.0).mean[1]  # of E[μ − x] in c − x
        thermal = law_after(inner_steps, eigenvalue, 0.0).covariance[1, 1]
        for _ in range(updates):
            mean += learning_rate * slope * (CENTRE @ EIGENVECTORS[:, i] - mean)
            variance *= (1 - learning_rate * slope) ** 2
            variance += learning_rate**2 * thermal
        error = np.sqrt(variance / SAMPLES)
        assert abs(ends[:, i].mean() - mean) < STANDARD_ERRORS * error
        error = variance * np.sqrt(2 / SAMPLES)
        assert abs(ends[:, i].var() - variance) < STANDARD_ERRORS * error


# Whiteness of the noise, as the parameters feel it.


@functools.cache
def long_noise(source: str) -> np.ndarray:
    """Two Langevin steps of one big array; shape (2, 2 ** 20)."""
    like = jnp.zeros(2**20, jnp.float32)
    record = jax.jit(lambda: record_noise(like, updates=1, inner_steps=2, noise=source))
    return np.asarray(record()[0], np.float64)


@functools.cache
def many_noises(source: str) -> np.ndarray:
    """All of 3 leaves × 4 seeds × 2 updates × 2 steps, 2048 numbers each; shape (48, 2048)."""
    like = {"a": jnp.zeros(2048), "b": jnp.zeros((32, 64)), "c": jnp.zeros((2, 32, 32))}

    def record(seed: Any) -> Any:
        return record_noise(like, key=seed, updates=2, inner_steps=2, noise=source)

    noise = jax.jit(jax.vmap(record))(jnp.array([0, 1, 2, 1 << 20]))
    rows = [np.asarray(leaf, np.float64).reshape(-1, 2048) for leaf in jax.tree.leaves(noise)]
    return np.concatenate(rows)


def worst_allowed(scores: int) -> float:
    """What the largest of this many standard normal |scores| exceeds once in 10,000 times."""
    return float(stats.norm.isf(1e-4 / (2 * scores)))


def correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores at all circular lags: standard normal if both are white."""
    transformed = np.conj(np.fft.rfft(left)) * np.fft.rfft(right)
    return np.fft.irfft(transformed, left.shape[-1]) / np.sqrt(left.shape[-1])


# Functions of the noise with mean 0 and variance 1.
SIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "value": lambda noise: noise,
    "sign": np.sign,
    "size": lambda noise: (np.abs(noise) - np.sqrt(2 / np.pi)) / np.sqrt(1 - 2 / np.pi),
}
SEEN = [("gaussian", "value"), ("gaussian", "sign"), ("gaussian", "size"), ("rademacher", "value")]


@pytest.mark.parametrize(("source", "sight"), SEEN)
def test_neighbours_and_steps_are_uncorrelated_at_every_lag(source: str, sight: str) -> None:
    first, second = SIGHTS[sight](long_noise(source))
    lags = first.size // 2  # the other half of an autocorrelation is its mirror image
    scores = np.concatenate(
        [
            correlations(first, first)[1:lags],
            correlations(second, second)[1:lags],
            correlations(first, second),
        ]
    )
    assert np.abs(scores).max() < worst_allowed(scores.size)
    # The short ones and the powers of two, where a lattice would show first, on their own.
    special = np.array([1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 65536, 2**19 - 1])
    near = scores[special - 1]
    assert np.abs(near).max() < worst_allowed(near.size)
    assert abs(np.mean(scores**2) - 1) < STANDARD_ERRORS * np.sqrt(2 / scores.size)


@pytest.mark.parametrize(("source", "sight"), SEEN)
def test_leaves_steps_updates_and_seeds_are_uncorrelated_at_every_lag(
    source: str, sight: str
) -> None:
    rows = SIGHTS[sight](many_noises(source))
    scores = np.concatenate(
        [correlations(rows[i], rows[i + 1 :]).ravel() for i in range(len(rows) - 1)]
    )
    assert np.abs(scores).max() < worst_allowed(scores.size)
    aligned = np.concatenate([rows[i] @ rows[i + 1 :].T for i in range(len(rows) - 1)])
    assert np.abs(aligned).max() / np.sqrt(rows.shape[1]) < worst_allowed(aligned.size)


def walsh(values: np.ndarray) -> np.ndarray:
    """The Walsh-Hadamard transform: Fourier's, in the bits of the index."""
    values = values.reshape((2,) * (values.size.bit_length() - 1))
    for axis in range(values.ndim):
        even, odd = np.take(values, 0, axis), np.take(values, 1, axis)
        values = np.stack([even + odd, even - odd], axis)
    return values.ravel()


@pytest.mark.parametrize("source", SOURCES)
def test_signs_do_not_depend_on_the_bits_of_the_index(source: str) -> None:
    """No parity of bits predicts a sign, nor does the sign at an index with some bits flipped."""
    first, second = np.sign(long_noise(source)[:, : 2**18])
    of_first, of_second = walsh(first), walsh(second)
    scores = np.concatenate(
        [
            of_first,
            of_second,
            walsh(of_first**2)[1:] / first.size / np.sqrt(2),  # each product occurs twice
            walsh(of_first * of_second) / first.size,
        ]
    )
    scores /= np.sqrt(first.size)
    assert np.abs(scores).max() < worst_allowed(scores.size)
    assert abs(np.mean(scores**2) - 1) < STANDARD_ERRORS * np.sqrt(2 / scores.size)


def test_moments_and_distribution() -> None:
    noise = long_noise("gaussian").ravel()
    for power, moment in enumerate([0, 1, 0, 3, 0, 15], start=1):
        variance = stats.norm.moment(2 * power) - moment**2
        error = np.sqrt(variance / noise.size)
        assert abs(np.mean(noise**power) - moment) < STANDARD_ERRORS * error
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    signs = long_noise("rademacher").ravel()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.sum()) < STANDARD_ERRORS * np.sqrt(signs.size)
