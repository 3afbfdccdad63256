"""Langevin chains on mini-batches, without Metropolis' correction: SGLD.

Losses are differences to w₀ on the same mini-batch. From loss and gradient alike, the noise is
subtracted that the mini-batch's gradient has at w₀, where that of the whole data set is known.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_sgd_jax import _trees
from entropy_sgd_jax._langevin import langevin_step
from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _chains
from entropy_sgd_jax.flatness._chains import Plan, Run, Samples, StepSize, Target, inner_products
from entropy_sgd_jax.flatness._data import DataSet

_BIAS = 0.04  # of λ, by the finite step size; it is measured and subtracted


class Chain(NamedTuple):
    """The state of all chains, and what is found in the burn-in."""

    offset: PyTree  # w − w₀, with the chains in the first axis
    step_size: StepSize
    rise: jax.Array  # means of nβ (L(w) − L(w₀)) and of ⟨P force, nβ ∇L⟩, shape (2,)
    squares: Any  # mean squares of the forces


class Minibatches(DataSet):
    """A data set of which one batch at a time is drawn."""

    def total(self) -> Any:
        """The weight of all batches, by default the number of examples.

        Raises ValueError if that is not plain: the arrays of a batch must then agree on it.
        """
        if self._by_shape and self.stacked:
            _one_axis(jax.eval_shape(_first, self._batches))
        elif self._by_shape:
            for batch in self._batches:
                _one_axis(batch)
        return self._sizes().sum()

    def drawn(self, key: jax.Array) -> Callable[[Any], Any]:
        """From the number of a step to its batch, and that batch's weight over the mean weight.

        A stacked batch is drawn at random; others come in the order of the iterable, again and
        again.
        """
        sizes = self._sizes()
        mean = sizes.mean()

        def at_random(number: jax.Array | int) -> Any:
            i = jax.random.randint(jax.random.fold_in(key, number), (), 0, len(sizes))
            batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], self._batches)
            return batch, jnp.asarray(sizes)[i] / mean

        def in_order(number: jax.Array | int) -> Any:
            batch = next(endless)
            return batch, self._batch_size(batch) / mean

        endless = self._endless() if not self.stacked else iter(())
        return at_random if self.stacked else in_order

    def _sizes(self) -> Any:
        if self.stacked and self._by_shape:
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(self._batches)]
            size = next((shape[1] for shape in shapes if len(shape) > 1), 1)
            return np.full(shapes[0][0], size, np.float32)
        if self.stacked:
            return jax.vmap(lambda batch: jnp.asarray(self._batch_size(batch), jnp.float32))(
                self._batches
            )
        sizes = [float(np.asarray(self._batch_size(batch))) for batch in self._batches]
        if not sizes:
            raise ValueError("`batches` must hold at least one batch; got none. Pass the data.")
        return np.array(sizes)

    def _endless(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(itertools.repeat(self._batches))


def _one_axis(batch: PyTree) -> None:
    """Raises ValueError unless all arrays but typed keys have the same leading axis."""
    leaves = [leaf for leaf in jax.tree.leaves(batch) if not _is_key(leaf)]
    axes = {np.shape(leaf)[:1] for leaf in leaves}
    if len(axes) > 1:
        raise ValueError(
            "`batches` must tell how many examples a batch has, since n counts here: all arrays of "
            f"a batch must have that as their leading axis; got {sorted(axes)}. Pass "
            "`batch_size`, such as lambda batch: len(batch['x']); [batch] for a single batch."
        )


def _first(stacked: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def sample(
    loss: Callable[[Any, Any], jax.Array],
    params: PyTree,
    data: Minibatches,
    target: Target,
    plan: Plan,
    key: jax.Array,
) -> Run:
    """All steps of all chains."""
    offset = _chains.zeros(params, plan.num_chains)
    zero = jax.tree.map(lambda leaf: leaf[0], offset)
    params = _chains.at(params, zero)
    here, slope = data.mean(jax.value_and_grad(loss))(params)
    batch_key, noise_key = jax.random.split(key)
    draw = data.drawn(batch_key)
    evaluate = jax.jit(functools.partial(_evaluate, loss))
    move = jax.jit(functools.partial(_move, target, plan, noise_key))

    def step(number: jax.Array | int, carry: tuple[Chain, Samples]) -> Any:
        # Drawn after the step that led here, which must not know it.
        batch, weight = draw(number)
        evaluated = evaluate(params, slope, carry[0].offset, batch, weight)
        return move(*carry, *evaluated, number)

    dtype = _trees.wide_dtype(params)
    # A hundredth of what suits curvatures of 1, since no correction forgives a step too large.
    first = jnp.asarray(_BIAS / 25 / sum(target), dtype)
    chain = Chain(offset, StepSize.start(plan, first), jnp.zeros(2, dtype), zero)
    chain, samples = plan.run(data, step, (chain, Samples.empty(plan, dtype)))
    return Run(_controlled(samples, plan.burn_in), jnp.exp(chain.step_size.log), here)


def _evaluate(
    loss: Any, params: PyTree, slope: Any, offsets: PyTree, batch: PyTree, weight: jax.Array | float
) -> tuple[Any, Any, Any]:
    """Unbiased estimates of L(w) − L(w₀), of zero, and of ∇L(w), for each chain.

    The estimate of zero is what the noise of the mini-batch's gradient at w₀ adds to the loss.
    """

    def difference(offset: PyTree) -> Any:
        return loss(_chains.at(params, offset), batch) - here

    def weighted(estimate: jax.Array) -> jax.Array:
        # A batch without examples has no mean, NaN most likely.
        return jnp.where(weight > 0, estimate * jnp.asarray(weight, estimate.dtype), 0)

    here, slope_here = jax.value_and_grad(loss)(params, batch)
    rises, gradient = jax.vmap(jax.value_and_grad(difference))(offsets)
    noise = jax.tree.map(lambda one, all_: weighted(one) - all_, slope_here, slope)
    controls = jax.vmap(_trees.inner_product, (None, 0))(noise, offsets)
    gradient = jax.tree.map(lambda one, noise: weighted(one) - noise[None], gradient, noise)
    return weighted(rises), controls, gradient


@functools.partial(jax.jit, static_argnums=1)
def _controlled(samples: Samples, burn_in: int) -> Samples:
    """The losses less what a regression on the controls explains, chain by chain.

    Near w₀ that is all the noise of the mini-batches. Far along a flat valley the gradients are no
    longer those of w₀, and the controls explain little.
    """
    kept = samples.kept(burn_in)
    losses, controls = kept.losses, kept.controls
    square = (controls**2).sum(axis=1)
    product = ((losses - losses.mean(axis=1, keepdims=True)) * controls).sum(axis=1)
    slope = jnp.where(square > 0, product / jnp.where(square > 0, square, 1), 0)
    return samples._replace(losses=samples.losses - slope[:, None] * samples.controls)


def _move(
    target: Target,
    plan: Plan,
    key: jax.Array,
    chain: Chain,
    samples: Samples,
    rises: jax.Array,
    controls: jax.Array,
    gradient: PyTree,
    number: jax.Array | int,
) -> tuple[Chain, Samples]:
    """One Langevin step, then tuning and recording."""
    beta, size = target.inverse_temperature, jnp.exp(chain.step_size.log)
    scales = _chains.preconditioner(plan, target, chain.squares)
    force = target.force(gradient, chain.offset)
    direction = jax.tree.map(lambda scale, f: scale[None] * f, scales, force)
    heat = beta * inner_products(direction, gradient)

    def leaf_step(
        offset: jax.Array, direction: jax.Array, scale: jax.Array, noise: jax.Array
    ) -> jax.Array:
        noise = jnp.sqrt(scale)[None] * noise
        still = jnp.zeros_like(offset)
        constants = {"scope": 0, "noise_scale": 2**0.5, "averaging": 1}
        half = size.astype(offset.dtype) / 2
        return langevin_step(offset, still, direction, still, noise, step_size=half, **constants)[0]

    noise = _chains.noise(key, number, chain.offset)
    offset = jax.tree.map(leaf_step, chain.offset, direction, scales, noise)
    square = inner_products(chain.offset, chain.offset)
    rise = jnp.stack([beta * rises.mean(), heat.mean()])
    rise = chain.rise + plan.forgetting(number) * (rise - chain.rise)
    moved = Chain(
        offset,
        chain.step_size.moved(plan, number, _change(rise, chain.step_size)),
        rise.astype(chain.rise.dtype),
        _chains.mean_squares(plan, number, chain.squares, force),
    )
    return moved, samples.with_step(number, rises, 0, controls, square, size / 8 * heat, 1)


def _change(rise: jax.Array, step_size: StepSize) -> jax.Array:
    """Of log ε, so that the bias ε/8 ⟨P force, nβ ∇L⟩ is the wanted share of nβ (L − L₀)."""
    wanted = jnp.log(8 * _BIAS * jnp.abs(rise[0]) / rise[1])
    return jnp.nan_to_num(jnp.clip(wanted - step_size.log, -0.7, 0.7), nan=0.0)
