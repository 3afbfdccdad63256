"""The diagnostics against NumPy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import EntropicDiagnostics, diloco, entropic, entropic_diagnostics
from tests.core.contract.common import L, entropy_sgd_1, every_mode, quiet, small_params
from tests.core.helpers import assert_close, partition, rows, train


def chain_by_numpy(
    x: np.ndarray, batches: np.ndarray, step_size: float, scope: float, averaging: float
) -> dict[str, float]:
    """What `entropic_diagnostics` must say of one update without noise."""
    iterate, average = x.copy(), x.copy()
    losses, norms, distances, first = [], [], [], None
    for batch in batches:
        grads = iterate - batch
        first = grads if first is None else first
        losses.append(0.5 * np.sum(grads**2))
        norms.append(np.linalg.norm(grads))
        iterate = iterate - step_size * (grads + scope * (iterate - x))
        average = (1 - averaging) * average + averaging * iterate
        distances.append(np.linalg.norm(iterate - x))
    pseudo = x - average
    return {
        "inner_loss": np.mean(losses),
        "inner_gradient_norm": np.mean(norms),
        "langevin_distance": np.mean(distances),
        "nonfinite_gradients": 0,
        "pseudo_gradient_norm": np.linalg.norm(pseudo),
        "alignment": pseudo @ first / np.linalg.norm(pseudo) / np.linalg.norm(first),
        "scope": scope,
    }


def observed(
    mode: str, with_value: bool = True, **options: Any
) -> tuple[Any, np.ndarray, np.ndarray]:
    """The record of the second of two updates, x before it, and all batches."""
    tx = optax.chain(
        optax.identity(),
        entropic(
            optax.sgd(1.0), inner_steps=L, inner_learning_rate=0.3, noise_scale=0, averaging=0.75,
            scope=lambda count: 0.4 * (count + 1), diagnostics=True, streaming=mode == "streaming",
            **options,
        ),
    )  # fmt: skip
    x, batches = jnp.array([1.0, -2.0, 0.5]), rows(2, L)
    value_and_grad = jax.value_and_grad(lambda p, batch: 0.5 * jnp.sum((p - batch) ** 2))

    @jax.jit
    def step(x: Any, state: Any, batches: Any) -> Any:
        if mode == "streaming":
            for batch in batches:
                value, grads = value_and_grad(x, batch)
                value = {"value": value} if with_value else {}
                updates, state = tx.update(grads, state, x, **value)
                x = optax.apply_updates(x, updates)
            return x, state
        value, grads = value_and_grad(x, batches[0])
        extra = {"value": value} if with_value else {}
        grads, batches = (grads, batches[1:]) if mode == "scan" else (None, batches)
        updates, state = tx.update(
            grads, state, x, value_and_grad_fn=value_and_grad, batches=batches, **extra
        )
        return optax.apply_updates(x, updates), state

    x1, state = step(x, tx.init(x), batches[0])
    _, state = step(x1, state, batches[1])
    return entropic_diagnostics(state), np.asarray(x1, np.float64), batches


@every_mode
@pytest.mark.parametrize("scale_by_scope", [False, True])
def test_diagnostics_against_numpy(scale_by_scope: bool, mode: str) -> None:
    record, x, batches = observed(mode, scale_by_scope=scale_by_scope)
    expected = chain_by_numpy(x, batches[1].astype(np.float64), 0.3, 0.8, 0.75)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(record, name), value, rtol=1e-4, err_msg=name)
    assert record.gradient_evaluations == 2 * L


def test_the_count_of_gradients_stops_at_the_end_of_int32() -> None:
    """As the count of updates does; a schedule never sees a number below 0."""
    tx = entropic(
        optax.sgd(1.0), inner_steps=L, noise_scale=0, averaging=1, scope=0, diagnostics=True,
        inner_learning_rate=lambda count: jnp.where(count < 0, 1.0, 0.0),
    )  # fmt: skip
    params = jnp.zeros(2)
    state = tx.init(params)._replace(count=jnp.int32(2**31 // L + 1))
    update = jax.jit(functools.partial(tx.update, grad_fn=lambda params, call: params - 1))
    updates, state = update(None, state, params)
    np.testing.assert_array_equal(updates, 0)
    assert int(entropic_diagnostics(state).gradient_evaluations) > 2**31 - 2 * L


def test_mean_inner_loss_of_the_losses_that_were_given() -> None:
    # In scan mode with `grads`, the loss at x is unknown; the other L - 1 are not.
    record, x, batches = observed("scan", with_value=False)
    iterate, losses = x, []
    for batch in batches[1]:
        losses.append(0.5 * np.sum((iterate - batch) ** 2))
        iterate = iterate - 0.3 * (iterate - batch + 0.8 * (iterate - x))
    np.testing.assert_allclose(record.inner_loss, np.mean(losses[1:]), rtol=1e-4)


def test_no_loss_given_is_nan() -> None:
    record, _, _ = observed("streaming", with_value=False)
    assert np.isnan(record.inner_loss)
    assert np.isfinite(record.inner_gradient_norm)


@pytest.mark.parametrize("mode", ["scan", "scan_none"])
def test_a_grad_fn_without_losses_leaves_the_given_one(mode: str) -> None:
    """`value=` is then the only loss there is: of the incoming gradient."""
    tx = entropy_sgd_1(inner_steps=L, noise_scale=0, diagnostics=True)
    _, state = train(tx, mode, jnp.ones(2), rows(1, L), value=jnp.float32(7.0))
    inner_loss = entropic_diagnostics(state).inner_loss
    assert np.isnan(inner_loss) if mode == "scan_none" else inner_loss == 7


def test_norms_of_half_precision_do_not_overflow() -> None:
    # 3e4² is beyond float16, and the sum of 1e4 such squares beyond it by far.
    tx = entropy_sgd_1(inner_steps=1, diagnostics=True, accumulator_dtype=jnp.float16)
    grads = jnp.full(10_000, 3e4, jnp.float16)
    params = jnp.zeros_like(grads)
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(entropic_diagnostics(state).inner_gradient_norm, 3e6, rtol=1e-3)


@every_mode
def test_diagnostics_change_nothing(mode: str) -> None:
    params, batches = small_params(), rows(2, L)
    with_record = train(quiet(entropy_sgd_1, mode, diagnostics=True), mode, params, batches)
    without = train(quiet(entropy_sgd_1, mode), mode, params, batches)
    assert_close(with_record[0], without[0])
    assert without[1].diagnostics is None


@pytest.mark.parametrize("streaming", [False, True])
def test_diagnostics_at_any_depth(streaming: bool) -> None:
    params = {"w": jnp.ones(2), "v": jnp.ones(1)}
    plain = entropy_sgd_1(inner_steps=1, noise_scale=0, streaming=streaming, diagnostics=True)
    wrapped = [
        plain,
        optax.chain(optax.identity(), optax.chain(plain, optax.identity())),
        optax.named_chain(("entropic", plain)),
        optax.masked(plain, {"w": True, "v": False}),
        optax.apply_if_finite(plain, 3),
        optax.MultiSteps(plain, 1).gradient_transformation(),
        partition({"a": plain, "b": optax.sgd(0.1)}, {"w": "a", "v": "b"}),
    ]
    for tx in wrapped:
        record = entropic_diagnostics(tx.init(params))
        assert isinstance(record, EntropicDiagnostics)
    _, state = jax.jit(wrapped[1].update)(params, wrapped[1].init(params), params)
    record = entropic_diagnostics(state)
    assert record.gradient_evaluations == 1
    np.testing.assert_allclose(record.alignment, 1, rtol=1e-5)


def test_diagnostics_before_the_first_update() -> None:
    tx = entropy_sgd_1(diagnostics=True)
    record = entropic_diagnostics(tx.init(jnp.ones(2)))
    assert record.gradient_evaluations == 0
    assert record.nonfinite_gradients == 0


def test_alignment_is_zero_where_undefined() -> None:
    tx = entropy_sgd_1(inner_steps=1, noise_scale=0, diagnostics=True)
    params = jnp.ones(2)
    _, state = jax.jit(tx.update)(jnp.zeros(2), tx.init(params), params)
    assert entropic_diagnostics(state).alignment == 0


def test_a_cycle_without_losses_forgets_those_of_the_cycle_before() -> None:
    tx = entropy_sgd_1(inner_steps=2, noise_scale=0, diagnostics=True, streaming=True)
    update, params = jax.jit(tx.update), jnp.ones(2)
    state, seen = tx.init(params), []
    for values in ({"value": 7.0}, {"value": 9.0}, {}, {}):
        _, state = update(params, state, params, **values)
        seen.append(float(entropic_diagnostics(state).inner_loss))
    np.testing.assert_array_equal(seen, [7, 8, np.nan, np.nan])


@pytest.mark.parametrize("offset", [0, 2])
def test_the_first_cycle_of_a_shifted_stream_starts_its_means(offset: int) -> None:
    """It has `inner_steps` − offset gradients, of which the first is its first."""
    tx = diloco(
        inner_steps=4, inner_optimizer=optax.sgd(0.1), streaming=True, offset=offset,
        diagnostics=True,
    )  # fmt: skip
    update, params = jax.jit(tx.update), jnp.zeros(2)
    state, norms = tx.init(params), []
    for number in range(6):
        grads = jnp.array([3.0, 4.0]) * (number + 1)
        updates, state = update(grads, state, params, value=float(number))
        params = optax.apply_updates(params, updates)
        norms.append(5.0 * (number + 1))
        record = entropic_diagnostics(state)
        np.testing.assert_allclose(record.inner_gradient_norm, np.mean(norms), rtol=1e-5)
        np.testing.assert_allclose(record.inner_loss, np.mean(norms) / 5 - 1, rtol=1e-5)
        if number == 3 - offset:  # the cycle ends
            np.testing.assert_allclose(record.alignment, 1, rtol=1e-5)
            norms = []
