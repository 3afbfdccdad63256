"""Statistical tests of the noise: fixed keys, bounds from the sample size.

A statistic that is standard normal for perfect noise is held to 5 standard
deviations, so with the fixed keys the tests cannot flake and still see any
bias above 5/sqrt(n).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from entropy_sgd_jax import _noise as noise

N = 1 << 19
SIGMAS = 5.0


SOURCES = ["gaussian", "rademacher"]


def keys_of(source: str, seed: int, steps: int = 1) -> noise.StepKey:
    return noise.step_keys(source, jax.random.key(seed), 0, jnp.arange(steps))


def key_of(source: str, seed: int, step: int = 0) -> noise.StepKey:
    return jax.tree.map(lambda row: row[step], keys_of(source, seed, step + 1))


@functools.cache
def drawn(source: str) -> Any:
    return jax.jit(lambda key: noise.draw(source, key, jnp.zeros(N)))


@functools.cache
def flat(source: str, seed: int, step: int = 0) -> np.ndarray:
    return np.asarray(drawn(source)(key_of(source, seed, step)), np.float64)


def words_of(seed: int) -> jax.Array:
    return key_of("gaussian", seed).words


def raw(key: jax.Array, n: int = N) -> np.ndarray:
    """The random words of parameters 0 to n − 1 under the two words of a key."""
    return np.asarray(noise._hash(jnp.arange(n, dtype=jnp.uint32) + key[0], key))


def correlation(a, b):
    """z-score of the correlation of two unit-variance samples."""
    return float(np.mean(a * b) * np.sqrt(a.size))


def test_normal_transform_over_a_grid_of_words():
    n, _ends = 1 << 22, np.arange(1 << 16)
    tail = np.concatenate(
        [
            np.arange(1 << 16),
            np.arange(n) * (2**31 // n) + 2**30 // n,
            2**31 - 1 - np.arange(1 << 16),
        ]
    ).astype(np.uint32)
    z = np.asarray(jax.jit(noise._gaussian)(tail)).astype(np.float64)
    minus = np.asarray(jax.jit(noise._gaussian)(tail | np.uint32(2**31)))
    p = (tail.astype(np.float64) + 0.5) * 2.0**-32
    assert np.isfinite(z).all()
    np.testing.assert_array_equal(z, -minus)
    assert abs(z + ndtri(p)).max() < 5e-6
    assert abs(ndtr(-z) - p).max() < 5e-7  # Kolmogorov-Smirnov distance
    assert z.max() > 6.3
    grid = z[1 << 16 : -(1 << 16)]
    # A grid of n points itself misses 4e-7 of the variance and 7e-5 of the kurtosis.
    exact = -ndtri(p[1 << 16 : -(1 << 16)])
    assert abs(np.mean(grid**2) - np.mean(exact**2)) < 1e-5
    assert abs(np.mean(grid**4) - np.mean(exact**4)) < 1e-4
    assert abs(np.mean(grid**2) - 1) < 2e-5
    assert abs(np.mean(grid**4) - 3) < 5e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gaussian_moments_and_distribution(seed):
    z = flat("gaussian", seed)
    root = np.sqrt(N)
    assert abs(z.mean()) * root < SIGMAS
    assert abs((z**2).mean() - 1) * root / np.sqrt(2) < SIGMAS
    assert abs((z**3).mean()) * root / np.sqrt(15) < SIGMAS
    assert abs((z**4).mean() - 3) * root / np.sqrt(96) < SIGMAS
    u = np.sort(ndtr(z))
    distance = max(abs(u - np.arange(N) / N).max(), abs(u - np.arange(1, N + 1) / N).max())
    assert distance * root < 2.3  # P(K > 2.3) = 5e-5


@pytest.mark.parametrize("step", [0, 1, 31, 32])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rademacher_is_balanced(seed, step):
    s = flat("rademacher", seed, step)
    assert set(np.unique(s)) == {-1.0, 1.0}
    assert abs(s.mean()) * np.sqrt(N) < SIGMAS


@pytest.mark.parametrize("draw", SOURCES)
@pytest.mark.parametrize("stride", [1, 2, 3, 10, 32, 1000, 1024, 4096, 1 << 16, 1 << 17])
def test_positions_are_uncorrelated(draw, stride):
    z = flat(draw, 0)
    assert abs(correlation(z[:-stride], z[stride:])) < SIGMAS
    if draw == "gaussian":
        v = (z**2 - 1) / np.sqrt(2)
        assert abs(correlation(v[:-stride], v[stride:])) < SIGMAS


@pytest.mark.parametrize("draw", SOURCES)
def test_seeds_and_steps_are_uncorrelated(draw):
    seeds = [flat(draw, seed) for seed in range(6)]
    steps = [flat(draw, 0, step) for step in (0, 1, 2, 31, 32, 64)]
    for group in (seeds, steps):
        for i in range(6):
            for j in range(i):
                assert abs(correlation(group[i], group[j])) < SIGMAS


@pytest.mark.parametrize("source", SOURCES)
def test_a_parameter_s_noise_over_steps(source):
    n = 1 << 16
    draw = jax.jit(jax.vmap(lambda key: noise.draw(source, key, jnp.zeros(16))))
    z = np.asarray(draw(keys_of(source, 3, n)), np.float64)
    assert abs(z.mean(0)).max() * np.sqrt(n) < SIGMAS
    if source == "gaussian":
        assert abs((z**2).mean(0) - 1).max() * np.sqrt(n / 2) < SIGMAS
    for lag in (1, 2, 4, 31, 32, 33, 64):
        c = (z[:-lag].T @ z[lag:]) / (n - lag)  # every position with every other, a lag apart
        assert abs(c).max() * np.sqrt(n - lag) < SIGMAS
    c = z.T @ z / n
    assert abs(c[~np.eye(16, dtype=bool)]).max() * np.sqrt(n) < SIGMAS


def test_the_signs_that_share_a_word_are_independent():
    """Of 32 steps: every two, at one parameter and at neighbours, and every three."""
    draw = jax.jit(jax.vmap(lambda key: noise.draw("rademacher", key, jnp.zeros(N))))
    signs = np.asarray(draw(keys_of("rademacher", 0, 32)))
    for apart in (0, 1, 2, 32, 1000):
        c = signs[:, apart:] @ signs[:, : N - apart].T / np.sqrt(N - apart)
        assert abs(c[~np.eye(32, dtype=bool) if apart == 0 else ...]).max() < SIGMAS
    for one in range(30):
        later = signs[one + 1 :]
        c = (later * signs[one]) @ later.T / np.sqrt(N)
        others = ~np.eye(len(later), dtype=bool)
        assert abs(c[others]).max() < SIGMAS + 0.5  # 4,960 different ones


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("kept", [0, 5000, 1 << 14])
@pytest.mark.parametrize("steps", [1, 5, 32, 33])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_drawn_ahead_is_what_each_step_draws(source, few, kept, steps, monkeypatch):
    monkeypatch.setattr(noise, "_FEW", few)
    monkeypatch.setattr(noise, "_KEPT", kept)
    monkeypatch.setattr(noise, "_AHEAD", 100 * kept)
    keys = keys_of(source, 2, steps)

    def prepared(keys):
        rows, draw = noise.prepare(source, keys, TREE)
        return jax.lax.map(draw, rows)

    ahead = jax.jit(prepared)(keys)
    alone = jax.jit(lambda keys: jax.lax.map(lambda key: noise.draw(source, key, TREE), keys))(keys)
    assert_same(ahead, alone, exact=source == "rademacher")


def test_only_a_small_tree_s_noise_is_drawn_ahead() -> None:
    """The rows of a larger one are keys, however many steps there are."""
    for size, steps, ahead in [(1000, 20, True), (1000, 300, False), (1 << 20, 2, False)]:
        rows, _ = noise.prepare("gaussian", keys_of("gaussian", 0, steps), jnp.zeros(size))
        assert isinstance(rows, jax.Array) == ahead


def test_keys_do_not_shift_one_sequence():
    """With the same second word, key k0 + 1 is not key k0 moved by one place."""
    a = raw(jnp.array([5, 9], jnp.uint32))
    b = raw(jnp.array([6, 9], jnp.uint32))
    assert np.mean(a[1:] == b[:-1]) < 1e-4
    c = raw(jnp.array([5, 10], jnp.uint32))
    assert np.mean(a == c) < 1e-4


def test_each_key_and_position_bit_flips_half_of_the_word():
    n = 1 << 14
    for seed in range(3):
        w = words_of(seed)
        base = raw(w, n)
        for which in range(2):
            for bit in range(32):
                flipped = raw(w.at[which].set(w[which] ^ np.uint32(1 << bit)), n)
                changed = np.unpackbits((base ^ flipped).view(np.uint8)).mean()
                # 32 n bits, not quite independent of each other: a loose bound.
                assert abs(changed - 0.5) < 0.05, (which, bit, changed)
        p = jnp.arange(n, dtype=jnp.uint32)
        for bit in range(32):
            flipped = np.asarray(noise._hash((p ^ np.uint32(1 << bit)) + w[0], w))
            changed = np.unpackbits((base ^ flipped).view(np.uint8)).mean()
            assert abs(changed - 0.5) < 0.05, (bit, changed)


def test_every_byte_of_the_words_is_uniform():
    w = raw(words_of(0))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((w >> shift) & 255, minlength=256)
        chi2 = ((counts - N / 256) ** 2 / (N / 256)).sum()
        assert abs(chi2 - 255) / np.sqrt(510) < SIGMAS


TREE = {
    "a": jnp.zeros((3, 5)),
    "b": jnp.zeros((80, 70)),
    "c": jnp.zeros(()),
    "d": jnp.zeros((6, 2, 40, 10)),
    "e": jnp.zeros((7,)),
    "f": jnp.zeros((9000,)),
    "g": jnp.zeros((4, 0)),
}


def assert_same(x, y, exact):
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == jnp.float32
        if exact:
            np.testing.assert_array_equal(a, b)
        else:  # XLA may contract a*b+c differently from one program to the next
            np.testing.assert_allclose(a, b, rtol=0, atol=5e-6)


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize(("source", "exact"), [("gaussian", False), ("rademacher", True)])
def test_numbers_depend_on_the_position_only(
    source: str, exact: bool, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "_FEW", few)  # 0: small leaves pooled, 8: each on its own

    def draw(key: jax.Array) -> Any:
        return noise.draw(source, key, TREE)

    keys, first = keys_of(source, 4, 3), key_of(source, 4)
    eager = draw(first)
    assert_same(eager, jax.jit(lambda key: draw(key))(first), exact)
    batch = jax.jit(jax.vmap(lambda key: draw(key)))(keys)
    assert_same(eager, jax.tree.map(lambda x: x[0], batch), exact)
    scanned = jax.lax.scan(lambda carry, key: (carry, draw(key)), 0, keys)[1]
    assert_same(batch, scanned, exact)
    # Small leaves first, then the large ones, one number for each parameter.
    order = sorted(TREE, key=lambda name: (TREE[name].size > noise._SMALL, name))
    joined = jnp.concatenate([eager[name].ravel() for name in order])
    words = jnp.asarray(raw(first.words, joined.size))
    assert_same([joined], [noise.SOURCES[source].transform(words)], exact)


def test_two_parameters_never_share_a_number_and_a_page() -> None:
    """Above 2³² parameters the hash runs out of numbers, and a new key begins."""
    sizes = [2**20, 5, 2**32 - 2**20, 2**25, 3, 2**32]
    starts = noise._first_numbers([(size,) for size in sizes])
    ranges = sorted(zip(starts, sizes, strict=True))
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(ranges))
    assert all(start // 2**32 == (start + n - 1) // 2**32 for start, n in ranges)


def test_a_later_page_has_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    key, like = key_of("gaussian", 0), jnp.zeros((100, 100))
    here = noise.draw("gaussian", key, like)
    monkeypatch.setattr(noise, "_first_numbers", lambda shapes: [2**32])
    there = noise.draw("gaussian", key, like)
    z = correlation(np.asarray(here).ravel(), np.asarray(there).ravel())
    assert abs(z) < SIGMAS


def test_no_key_is_no_noise_and_dtypes_follow() -> None:
    like = {"a": jnp.zeros(3, jnp.bfloat16), "b": None}
    assert noise.draw("gaussian", None, like) == {"a": None, "b": None}
    assert noise.draw("gaussian", key_of("gaussian", 0), like)["a"].dtype == jnp.bfloat16


def test_noise_stays_inside_the_update():
    """No random words are written to memory, and none are computed twice."""
    shape = (512, 384)

    def run(x, keys):
        def body(carry, key):
            y, mean = carry
            y = y - 0.1 * (y - x) + 0.01 * noise.draw("gaussian", key, y)
            return (y, 0.25 * mean + 0.75 * y), None

        return jax.lax.scan(body, (x, x), keys)[0]

    text = jax.jit(run).lower(jnp.zeros(shape), keys_of("gaussian", 0, 4)).compile().as_text()
    lines = text.splitlines()
    assert not any(" fusion(" in s and "u32[512,384]" in s.split(" fusion(")[0] for s in lines)
    assert sum("u32[512,384]" in s and " multiply(" in s for s in lines) <= 3


def test_a_leaf_of_several_pages_repeats_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pages of 64 numbers in place of 2³², whose rows a leaf takes whole."""
    monkeypatch.setattr(noise, "_PAGE", 64)
    monkeypatch.setattr(noise, "_SMALL", 0)
    shapes = [(10,), (5, 4, 20), (5, 2)]
    starts = noise._first_numbers(shapes)
    assert starts == [0, 64, 64 + 7 * 64]  # of 20 rows, three to a page
    key = key_of("gaussian", 0).words
    words = [
        np.asarray(noise._words(start, shape, key)).ravel()
        for start, shape in zip(starts, shapes, strict=True)
    ]
    assert [len(row) for row in words] == [math.prod(shape) for shape in shapes]
    assert len(np.unique(np.concatenate(words))) == sum(map(math.prod, shapes))
