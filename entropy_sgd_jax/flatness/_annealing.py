"""Annealed importance sampling: from the unit normal to a density that is known up to a factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness._data import DataSet

PILOTS = 8  # further chains, which choose the ladder and the step size for the others
_ACCEPTANCE = 0.6  # that they aim at
_ADAPTATION = 0.3  # of the logarithm of the step size, per step
_EVEN = 2  # the smallest logarithm of the last rung over the first: rungs of one size lose more


class Chains(NamedTuple):
    """One state for each chain, in the first axis of all but the step size."""

    point: Any
    energy: jax.Array
    gradient: PyTree  # of the energy
    work: jax.Array  # W, of all but the pilots
    log_step_size: jax.Array  # shape ()


def anneal(
    data: DataSet,
    evaluate: Callable[[Any], tuple[jax.Array, Any]],
    noise: Callable[[jax.Array], Any],
    num_steps: int,
    key: jax.Array,
) -> Chains:
    """Chains from N(0, I) to the density ∝ exp(−energy − ‖point‖²/2).

    The energy is switched on from s = 0 to 1, and the work W is the sum of (s′ − s) · energy. A
    mean over the chains with weights exp(−W) is one over the density, and that of the weights
    themselves is ⟨exp(−energy)⟩ over N(0, I).

    Args:
      data: for its loop.
      evaluate: the energies of as many points as there are chains, and the gradients.
      noise: from a key to as many points, unit normal; `PILOTS` of them are pilots.
      num_steps: of each chain.
      key: of the chains.
    """
    start_key, key = jax.random.split(key)
    point = noise(start_key)
    energy, gradient = evaluate(point)
    ladder = _ladder(energy[-PILOTS:], num_steps)

    def step(number: jax.Array | int, chains: Chains) -> Chains:
        now = ladder[number + 1]
        work = chains.work + (now - ladder[number]) * chains.energy[:-PILOTS]
        noise_key, step_key = jax.random.split(jax.random.fold_in(key, number))
        proposal = _propose(chains, now, noise(noise_key))
        moved: Chains = _accept(
            chains._replace(work=work), proposal, evaluate(proposal), now, step_key
        )
        return moved

    work = jnp.zeros_like(energy[:-PILOTS])
    log_step_size = jnp.log(jnp.full((), 2, energy.dtype))
    return data.loop(0, num_steps, step, Chains(point, energy, gradient, work, log_step_size))


def _ladder(pilots: jax.Array, num_steps: int) -> jax.Array:
    """The values of s, shape (num_steps + 1,): the first so small that the energy hardly counts.

    From there they grow by a factor, since what the density does with s it does with log s.
    """
    pilots = jnp.where(jnp.isfinite(pilots), pilots, jnp.nan)
    spread = jnp.nan_to_num(jnp.nanmax(pilots) - jnp.nanmin(pilots))
    rate = _EVEN + jnp.log1p(spread)
    return jnp.expm1(rate * jnp.linspace(0, 1, num_steps + 1, dtype=rate.dtype)) / jnp.expm1(rate)


@jax.jit
def _propose(chains: Chains, weight: jax.Array, noise: Any) -> Any:
    """A semi-implicit Langevin step, which leaves the unit normal as it is.

    At step size 2 it is an independent draw from it, shifted by the gradient.
    """
    size = jnp.exp(chains.log_step_size)

    def leaf_step(point: jax.Array, gradient: jax.Array, noise: jax.Array) -> jax.Array:
        drift = (2 - size) * point - 2 * size * weight * gradient
        return (drift + jnp.sqrt(8 * size) * noise) / (2 + size)

    return jax.tree.map(leaf_step, chains.point, chains.gradient, noise)


@jax.jit
def _accept(
    chains: Chains, point: Any, evaluated: PyTree, weight: jax.Array, key: jax.Array
) -> Chains:
    """Metropolis' choice between the old states and the proposed ones, and the next step size."""
    size = jnp.exp(chains.log_step_size)
    proposed = chains._replace(point=point, energy=evaluated[0], gradient=evaluated[1])

    def flow(here: Chains, there: Chains) -> jax.Array:
        """−log of (density here) · (density of the move there), less what is symmetric."""
        move = jax.tree.map(lambda u, v: (v - u) / 2 + size / 4 * (u + v), here.point, there.point)
        squared = jax.vmap(_trees.inner_product)(here.gradient, here.gradient)
        along = jax.vmap(_trees.inner_product)(move, here.gradient)
        return weight * (here.energy + along + size / 4 * weight * squared)

    probability = jnp.exp(jnp.minimum(flow(chains, proposed) - flow(proposed, chains), 0))
    uniform = jax.random.uniform(key, probability.shape, probability.dtype)
    taken = uniform < probability  # never where the energy is not a number

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    point, energy, gradient = (
        jax.tree.map(choose, new, old) for new, old in zip(proposed[:3], chains[:3], strict=True)
    )
    # Only the pilots steer, and they do not count, so that to all others the sizes are given.
    excess = jnp.nan_to_num(probability[-PILOTS:]).mean() - _ACCEPTANCE
    largest = jnp.log(jnp.full_like(size, 2))
    log_step_size = jnp.minimum(chains.log_step_size + _ADAPTATION * excess, largest)
    return Chains(point, energy, gradient, chains.work, log_step_size)
