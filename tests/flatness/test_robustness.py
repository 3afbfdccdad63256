"""What must hold at every scale, for scalars, odd sizes and strict promotion, in float32."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax import flatness
from tests.flatness.cases import network, plain, rotated

SCALES = [1e-34, 1e-30, 1e-22, 1.0, 1e18, 1e30, 1e35]
EIGENVALUES = np.concatenate([[5.0, 3.0, -2.0], np.linspace(-0.1, 0.1, 97)])


@jax.jit
def measured(scale: Any) -> dict[str, Any]:
    """Of ½ wᵀ H w times `scale`, each over `scale`, but for the product with the data."""
    hessian = rotated(EIGENVALUES).astype(jnp.float32)

    def loss(params: Any, batch: Any) -> Any:
        return 0.5 * params @ (batch @ params)

    params, batches = jnp.zeros(100, jnp.float32), (scale * hessian)[None]
    density = flatness.spectral_density(loss, params, batches, num_probes=2, num_steps=40)
    return {
        "top": flatness.top_eigenvalues(loss, params, batches, 2),
        "spectrum": flatness.exact_spectrum(loss, params, batches)[jnp.array([0, 98, 99])],
        "trace": flatness.hessian_trace(loss, params, batches),
        "largest": density.nodes.max(axis=1),
        "density": density.density(scale * jnp.array([5.0, 3.0]), scale * 0.5),
        "sharpness": flatness.sharpness(loss, params, batches, 1.0, num_steps=60),
        "energy": flatness.local_energy(
            loss, params, batches, 1.0, multiplicative=False, num_samples=50
        ),
    }


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_measured_alike(scale: float) -> None:
    got = jax.tree.map(np.asarray, measured(jnp.float32(scale)))
    one = jax.tree.map(np.asarray, measured(jnp.float32(1)))
    np.testing.assert_allclose(got["top"] / scale, [5, 3], rtol=1e-4)
    np.testing.assert_allclose(got["spectrum"] / scale, [-2, 3, 5], rtol=1e-3)
    np.testing.assert_allclose(got["largest"] / scale, 5, rtol=1e-3)
    np.testing.assert_allclose(got["density"] * scale, one["density"], rtol=0.02)
    np.testing.assert_allclose(got["sharpness"] / scale, 2.5, rtol=1e-3)
    for name in ("trace", "energy"):
        np.testing.assert_allclose(
            np.array(got[name]) / scale, np.array(one[name]), rtol=0.02, atol=0.01
        )


NET = network(5, np.float32)


def loss(params: Any, batch: Any) -> Any:
    return jnp.sum(params * params) * (1 if batch is None else jnp.mean(batch))


ALL = {
    "product": lambda f, p, b, **k: flatness.hessian_vector_product(f, p, p, b, **k),
    "exact": flatness.exact_spectrum,
    "top": lambda f, p, b, **k: flatness.top_eigenvalues(f, p, b, 1, **k),
    "trace": lambda f, p, b, **k: flatness.hessian_trace(f, p, b, num_probes=6, **k),
    "hutchinson": lambda f, p, b, **k: flatness.hessian_trace(
        f, p, b, num_probes=2, method="hutchinson", **k
    ),
    "density": lambda f, p, b, **k: flatness.spectral_density(
        f, p, b, num_probes=2, num_steps=3, **k
    ).density(np.linspace(-1, 3, 5), 0.5),
    "energy": lambda f, p, b, **k: flatness.local_energy(f, p, b, 0.1, num_samples=2, **k),
    "entropy": lambda f, p, b, **k: flatness.local_entropy(f, p, b, 1.0, num_steps=2, **k),
    "sharpness": lambda f, p, b, **k: flatness.sharpness(f, p, b, 0.1, num_steps=2, **k),
}


@pytest.mark.parametrize("name", ALL)
def test_a_single_number_is_a_parameter(name: str) -> None:
    expected = ALL[name](loss, jnp.ones(1), [jnp.ones(3)])
    for params, batches in ((1.0, [jnp.ones(3), jnp.ones(1)]), (jnp.float32(1), jnp.ones((2, 3)))):
        got = ALL[name](loss, params, batches)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(np.ravel(a), np.ravel(b), atol=1e-5),
            got, expected,
        )  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_strict_dtype_promotion(name: str) -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), NET.params)

    def widened(params: Any, batch: Any) -> Any:
        return NET.loss(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), batch)

    with jax.numpy_dtype_promotion("strict"):
        got = ALL[name](widened, half, NET.batches)
        finite = jax.tree.map(lambda leaf: np.isfinite(np.asarray(leaf, float)).all(), got)
        assert all(jax.tree.leaves(finite))


STRICT_RANKS = ALL | {
    "energies": lambda f, p, b: flatness.local_energy(f, p, b, np.linspace(0, 0.2, 3)),
    "line": lambda f, p, b: flatness.loss_on_line(f, p, jax.tree.map(jnp.negative, p), b),
    "plane": lambda f, p, b: flatness.loss_on_plane(
        f, p, *(jax.tree.map(lambda leaf, k=k: jnp.cos(k + leaf), p) for k in (1, 2)), b, points=3
    ),
    "metropolis": lambda f, p, b: flatness.local_learning_coefficient(f, p, b, num_steps=8),
    "sgld": lambda f, p, b: flatness.local_learning_coefficient(
        f, p, b, num_steps=8, method="sgld"
    ),
    "certificate": lambda f, p, b: flatness.pac_bayes_bound(
        lambda p, b: jnp.minimum(f(p, b), 1), p, b, scope=1.0, num_steps=8
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of chains as short as these
@pytest.mark.parametrize("batches", [NET.batches, NET.ragged], ids=["stacked", "list"])
@pytest.mark.parametrize("name", STRICT_RANKS)
def test_strict_rank_promotion(name: str, batches: Any) -> None:
    params = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), NET.params)  # of two axes

    def loss(params: Any, batch: Any) -> Any:
        return NET.loss(params, batch)

    expected = STRICT_RANKS[name](loss, params, batches)
    with jax.numpy_rank_promotion("raise"):
        jax.clear_caches()
        got = STRICT_RANKS[name](loss, params, batches)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("size", [-1, float("nan"), 0])
@pytest.mark.parametrize("name", ["trace", "energy"])
def test_sizes_that_cannot_be_are_refused(name: str, size: float) -> None:
    net = plain(NET.loss)
    for batches in (NET.batches, NET.ragged):
        with pytest.raises(ValueError, match=r"`batch_size` must return finite numbers"):
            ALL[name](net, NET.params, batches, batch_size=lambda batch: jnp.asarray(size))
    traced = jax.jit(lambda b: ALL[name](net, NET.params, b, batch_size=lambda _: size))
    assert np.isnan(traced(NET.batches).value)  # what it is there is not known in time


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flatness.sharpness(loss, 1.0, [None], 10**400), "`radius` must be"),
        (lambda: flatness.local_entropy(loss, 1.0, [None], 10**400), "`scope` must be"),
        (lambda: flatness.local_entropy(loss, 1.0, [None], 1e-60), "`scope` .* In float32"),
        (lambda: flatness.local_energy(loss, 1.0, [None], 1e39), "`strength` must be"),
        (lambda: flatness.hessian_trace(loss, 1.0, [None], num_probes=2**31), "`num_probes` must"),
        (lambda: flatness.hessian_trace(loss, 1.0, [None], num_probes=10**400), "`num_probes`"),
        (lambda: flatness.hessian_trace(loss, 1.0, [None], key=10**400), "`key` must be"),
        (lambda: flatness.top_eigenvalues(loss, 1.0, [None], 10**5000), "`k` must be"),
    ],
)  # fmt: skip
def test_numbers_too_large_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


SCALAR_LOSSES = {
    "hessian_trace": lambda loss, params: flatness.hessian_trace(loss, params, ROWS),
    "local_energy": lambda loss, params: flatness.local_energy(loss, params, ROWS, 0.1),
    "sharpness": lambda loss, params: flatness.sharpness(loss, params, ROWS, 0.1),
    "local_entropy": lambda loss, params: flatness.local_entropy(loss, params, ROWS, 1.0),
    "loss_on_line": lambda loss, params: flatness.loss_on_line(loss, params, 2 * params, ROWS),
    "local_learning_coefficient": lambda loss, params: flatness.local_learning_coefficient(
        loss, params, ROWS, num_steps=8
    ),
    "pac_bayes_bound": lambda loss, params: flatness.pac_bayes_bound(
        loss, params, ROWS, scope=1.0, num_steps=8
    ),
}
ROWS = [jnp.ones((8, 3))]


@pytest.mark.parametrize("name", SCALAR_LOSSES)
@pytest.mark.parametrize(
    ("returned", "got"),
    [(lambda rows: rows, "an array of the shape (8,)"), (lambda rows: (rows.mean(), 0), "a tuple")],
    ids=["of each example", "with more"],
)
def test_a_loss_that_is_no_scalar_is_refused(name: str, returned: Any, got: str) -> None:
    def loss(params: Any, batch: Any) -> Any:
        return returned((batch @ params) ** 2)

    with pytest.raises(ValueError, match=re.escape(got)):
        SCALAR_LOSSES[name](loss, jnp.ones(3))


def test_the_digits_of_a_loss_in_bfloat16_are_accounted_for() -> None:
    """1 + ½ ‖w‖² has steps of 2⁻⁷ there, which no dtype of the parameters mends."""

    def loss(params: Any, batch: Any) -> Any:
        return (1 + 0.5 * jnp.sum(params**2)).astype(jnp.bfloat16)

    rise = flatness.local_energy(loss, jnp.ones(5), [None], 0.02)
    assert abs(float(rise.value) - 0.5 * 5 * 0.02**2) < float(rise.standard_error) < 2**-4
    with pytest.warns(UserWarning, match="The digits of bfloat16 are too few"):
        flatness.sharpness(loss, jnp.zeros(5), [None], 0.1)
    with pytest.warns(UserWarning, match="The digits of the loss .* Let it return float32"):
        estimate = flatness.local_learning_coefficient(
            loss, jnp.zeros(5), [None], inverse_temperature=1e4, num_steps=8
        )
    np.testing.assert_allclose(estimate.rounding, 1e4 * 2**-7)


def test_local_entropy_of_parameters_in_bfloat16_loses_no_steps() -> None:
    """The chains' steps are a thousandth, the digits of 1 in bfloat16 a 128th."""
    curvature = scope = 1e6
    estimate = flatness.local_entropy(
        lambda params, batch: 0.5 * curvature * jnp.sum((params.astype(jnp.float32) - 1) ** 2),
        jnp.ones(20, jnp.bfloat16), [None], scope,
    )  # fmt: skip
    truth = 10 * np.log(2 * np.pi / (curvature + scope))
    assert abs(float(estimate.value) - truth) < 5 * float(estimate.standard_error) < 0.01
