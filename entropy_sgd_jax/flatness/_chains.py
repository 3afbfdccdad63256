"""What the two samplers of the tempered posterior around given parameters have in common.

The density is p(w) ∝ exp(−nβ L(w) − γ/2 ‖w − w₀‖²). Several chains run side by side from w₀; the
state of a chain is its offset w − w₀, so that small steps are not lost in the digits of w₀.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_sgd_jax import _noise as noise_lib
from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _checks
from entropy_sgd_jax.flatness._data import DataSet
from entropy_sgd_jax.flatness._progress import Progress, tracked

_CHUNKS = 100  # of steps, each of which moves the progress bar


class Target(NamedTuple):
    """The density that is sampled."""

    inverse_temperature: jax.Array  # nβ, shape ()
    scope: jax.Array  # γ, shape ()

    def force(self, gradient: PyTree, offset: PyTree) -> Any:
        """−∇ log p."""

        def leaf_force(gradient: jax.Array, offset: jax.Array) -> jax.Array:
            weight, pull = (jnp.asarray(x, offset.dtype) for x in self)
            return weight * gradient + pull * offset

        return jax.tree.map(leaf_force, gradient, offset)


class Plan(NamedTuple):
    """How many chains, how long, and by which steps; all static but the step size."""

    num_chains: int
    num_steps: int
    step_size: jax.Array | None  # None: to be found
    precondition: bool
    progress: bool | Progress

    @property
    def burn_in(self) -> int:
        """The number of first steps that tune the sampler and are thrown away."""
        return self.num_steps // 2

    def forgetting(self, number: jax.Array | int) -> jax.Array:
        """The weight of step `number` in a running mean over the newest tenth of steps so far."""
        return jnp.maximum(jnp.minimum(10 / (number + 1.0), 1), min(20 / self.num_steps, 1))

    def run(self, data: DataSet, step: Callable[[Any, Any], Any], carry: Any) -> Any:
        """`carry = step(i, carry)` for all steps."""
        if not self.progress or _trees.is_traced(carry):
            return data.loop(0, self.num_steps, step, carry)
        chunks = min(_CHUNKS, self.num_steps)
        for i in tracked(self.progress, "Langevin steps", chunks):
            start, stop = (j * self.num_steps // chunks for j in (i, i + 1))
            carry = jax.block_until_ready(data.loop(start, stop, step, carry))
        return carry


def plan(num_chains: Any, num_steps: Any) -> Plan:
    """With all that is to be found found; raises ValueError for numbers out of range."""
    advice = "The standard error is over them; 8 is the default."
    num_chains = _checks.integer("num_chains", num_chains, 2, math.inf, advice)
    advice = "Half of them are thrown away; 2000 is usual."
    num_steps = _checks.integer("num_steps", num_steps, 8, math.inf, advice)
    return Plan(num_chains, num_steps, None, True, False)


class Samples(NamedTuple):
    """What is recorded at each step, burn-in included."""

    losses: jax.Array  # L(w) − L(w₀), shape (num_chains, num_steps)
    errors: jax.Array  # a second number beside the loss, shape (num_chains, num_steps)
    controls: jax.Array  # of mean zero, correlated with the losses, shape (num_chains, num_steps)
    distances: jax.Array  # ‖w − w₀‖², shape (num_chains, num_steps)
    biases: jax.Array  # of nβ L from the finite step size, shape (num_chains, num_steps)
    acceptance: jax.Array  # the mean over the chains, shape (num_steps,)

    @classmethod
    def empty(cls, plan: Plan, dtype: Any) -> Samples:
        """Zeros."""
        rows = jnp.zeros((plan.num_chains, plan.num_steps), dtype)
        return cls(rows, rows, rows, rows, rows, rows[0])

    def kept(self, burn_in: int) -> Samples:
        """Without the first `burn_in` steps."""
        return Samples(*(rows[..., burn_in:] for rows in self))

    def with_step(self, number: jax.Array | int, *values: Any) -> Samples:
        """One value for each field, put at step `number`."""
        return Samples(
            *(
                rows.at[..., number].set(jnp.asarray(value, rows.dtype))
                for rows, value in zip(self, values, strict=True)
            )
        )


class Run(NamedTuple):
    """What a sampler returns."""

    samples: Samples
    step_size: jax.Array  # ε, shape ()
    here: jax.Array  # L(w₀), shape ()


class StepSize(NamedTuple):
    """ε while it is being found."""

    log: jax.Array  # shape ()
    late: jax.Array  # its sum over the second half of the burn-in, whose mean is kept

    @classmethod
    def start(cls, plan: Plan, first: jax.Array) -> StepSize:
        """At the step size given, or at `first`."""
        log = jnp.log(first if plan.step_size is None else plan.step_size)
        return cls(jnp.asarray(log, first.dtype), jnp.zeros((), first.dtype))

    def moved(self, plan: Plan, number: jax.Array | int, change: jax.Array) -> StepSize:
        """Changed by so much of its logarithm in the burn-in; then frozen."""
        if plan.step_size is not None or not plan.burn_in:
            return self
        log = self.log + jnp.asarray(change, self.log.dtype)
        half = plan.burn_in // 2
        late = self.late + jnp.where((half <= number) & (number < plan.burn_in), log, 0)
        mean = late / (plan.burn_in - half)
        last = number == plan.burn_in - 1
        log = jnp.where(number < plan.burn_in, jnp.where(last, mean, log), self.log)
        return StepSize(log, late)


def zeros(params: PyTree, count: int) -> Any:
    """`count` offsets of zero, in at least float32 and sharded as the parameters are."""

    def leaf_zeros(leaf: Any) -> jax.Array:
        leaf = jnp.zeros_like(leaf, _trees.wide_dtype(leaf))
        return jnp.broadcast_to(leaf, (count, *leaf.shape))

    return jax.tree.map(leaf_zeros, params)


def at(params: PyTree, offset: PyTree) -> Any:
    """The parameters at an offset, in the offset's dtypes: in bfloat16 steps would be lost."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype) + y, params, offset)


def noise(key: Any, number: jax.Array | int, offset: PyTree) -> Any:
    """Standard normal, in the shapes of `offset`, whose first axis is the chains."""
    count, one = len(jax.tree.leaves(offset)[0]), jax.tree.map(lambda leaf: leaf[0], offset)
    keys = noise_lib.step_keys("gaussian", key, number, jnp.arange(count))
    return jax.vmap(lambda key: noise_lib.draw("gaussian", key, one))(keys)


def inner_products(a: PyTree, b: PyTree) -> jax.Array:
    """One for each chain, shape (num_chains,)."""
    products: jax.Array = jax.vmap(_trees.inner_product)(a, b)
    return products


def mean_squares(plan: Plan, number: jax.Array | int, squares: Any, force: Any) -> Any:
    """The running mean of each parameter's squared force, over chains and burn-in."""
    if not plan.precondition:
        return squares
    weight = jnp.where(number < plan.burn_in, plan.forgetting(number), 0)
    return jax.tree.map(
        lambda old, new: old + weight.astype(old.dtype) * ((new**2).mean(axis=0) - old),
        squares,
        force,
    )


def preconditioner(plan: Plan, target: Target, squares: Any) -> Any:
    """P, the step size of each parameter in units of ε, at most 1: RMSProp's; else all ones.

    Where the density is flat the mean square of the force is γ, and P is 1.
    """

    def leaf_scale(square: jax.Array) -> jax.Array:
        scope = jnp.asarray(target.scope, square.dtype)
        return jnp.sqrt(scope / jnp.maximum(square, scope))

    if not plan.precondition:
        return jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), squares)
    return jax.tree.map(leaf_scale, squares)
