"""How much the loss rises around a solution: on average, and at worst."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import _checks, _estimates, _vectors
from entropy_sgd_jax.flatness._curvature import Loss, ScalarLoss
from entropy_sgd_jax.flatness._data import BatchSize, DataSet
from entropy_sgd_jax.flatness._estimates import Estimate


def local_energy(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    strength: ArrayLike,
    *,
    multiplicative: bool = True,
    num_samples: int = 100,
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> Estimate:
    """The mean rise of the loss over the data set under Gaussian perturbation of the parameters.

    The mean of E(w + σ z ⊙ w) − E(w) over z ~ N(0, I), or with ``multiplicative=False`` of
    E(w + σ z) − E(w). Like the loss of a ReLU network, the multiplicative one does not change when
    a layer is scaled up and the next one down.

    Cost: `num_samples` evaluations of the loss over the data for each strength, and one more. All
    strengths share their samples z, so that a profile is smooth.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar. It is not differentiated,
        so an error rate will do.
      params: real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      strength: σ, at least 0: a number, or an array for a profile. 0.1 to 0.5 is usual for
        multiplicative noise, relative to each parameter; otherwise it is in the parameters' units.
      multiplicative: whether each parameter's perturbation is in proportion to it.
      num_samples: how many perturbations, a static int of at least 1.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: of the perturbations: an int, a typed key or a legacy uint32 key.

    Returns:
      The mean rise and its standard error, in the units of the loss and the shape of `strength`.
      The error is that of the samples, and of rounding the loss that the rise is a difference of.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import local_energy
    >>> loss = lambda params, batch: jnp.sum(params**2)
    >>> rise = local_energy(loss, jnp.ones(1000), [None], jnp.array([0.0, 0.1]))
    >>> print(rise.value.round())
    [ 0. 10.]

    References:
      Pittorino et al., "Entropic gradient descent algorithms and wide flat minima", ICLR 2021,
      https://arxiv.org/abs/2006.07897
    """
    _checks.params(params)
    params = _vectors.arrays(params)
    dtype, advice = _trees.wide_dtype(params), "0.1 to 0.5 is usual."
    strength = _checks.positive("strength", strength, advice, dtype, zero=True, scalar=False)
    advice = "Error bars fall with its square root, and need at least 2."
    num_samples = _checks.integer("num_samples", num_samples, 1, float("inf"), advice)
    loss, data = ScalarLoss(loss), DataSet(batches, batch_size)
    strengths = strength.reshape(-1)
    keys = jax.random.split(_checks.key(key), num_samples)

    def losses(params: PyTree, direction: PyTree, strengths: ArrayLike, batch: PyTree) -> jax.Array:
        def at(strength: jax.Array) -> jax.Array:
            return loss(_vectors.add_scaled(params, strength, direction), batch)

        values: jax.Array = lax.map(at, strengths)
        return values

    mean = data.mean(losses)
    zeros = jax.tree.map(jnp.zeros_like, params)
    here = mean(params, zeros, strengths[:1] * 0)

    def sample(number: jax.Array | int) -> jax.Array:
        direction = _vectors.draw("gaussian", keys[number], params)
        if multiplicative:
            direction = jax.tree.map(lambda z, w: z * w.astype(z.dtype), direction, params)
        rise: jax.Array = mean(params, direction, strengths) - here
        return rise

    rises = data.samples(num_samples, sample, jnp.zeros(strengths.shape, here.dtype))
    value, error = _estimates.of_samples(rises.reshape(num_samples, *strength.shape))
    rounding = jnp.where(strength > 0, loss.eps * jnp.abs(here[0]), 0)
    return Estimate(value, jnp.hypot(error, rounding.astype(error.dtype)))


def sharpness(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    radius: ArrayLike,
    *,
    num_steps: int = 20,
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> jax.Array:
    """The largest rise of the loss over the data set within a ball: SAM's worst case.

    The largest E(w + δ) − E(w) with ‖δ‖ ≤ radius found by ascent on the ball: each step goes
    to the point of the sphere in the direction of the gradient at the step before. The first is
    SAM's own, radius · g / ‖g‖; where the gradient vanishes, the steps are those of the power
    iteration for the Hessian. So it is a lower bound of the true maximum, and no less than SAM's.

    Cost: `num_steps` + 1 gradients over the data; memory of four vectors like ``params``. In
    bfloat16 a step below 1/256 of a weight is lost: pass float32 parameters.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar.
      params: real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      radius: of the ball, above 0, in the parameters' units; SAM's own is 0.05 to 0.1.
      num_steps: a static int of at least 1.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: of the random direction that the search starts from where the gradient vanishes: an int,
        a typed key or a legacy uint32 key.

    Returns:
      The rise, at least 0, in the units of the loss, shape ().

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import sharpness
    >>> loss = lambda params, batch: jnp.sum(jnp.array([1.0, 5.0]) * params**2)
    >>> print(f"{sharpness(loss, jnp.zeros(2), [None], radius=0.1):.3f}")
    0.050

    References:
      Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR
      2021, https://arxiv.org/abs/2010.01412
    """
    _checks.params(params)
    params = _vectors.arrays(params)
    radius = _checks.positive("radius", radius, "0.05 is usual.", _trees.wide_dtype(params))
    advice = "1 is SAM's, 20 is the default."
    num_steps = _checks.integer("num_steps", num_steps, 1, float("inf"), advice)
    loss, data = ScalarLoss(loss), DataSet(batches, batch_size)
    value_and_grad = data.mean(jax.value_and_grad(loss))
    noise = _vectors.normalised(_vectors.draw("gaussian", _checks.key(key), params))

    def step(number: jax.Array | int, carry: Any) -> Any:
        gradient, highest = carry
        # The trace of noise sets the direction if the gradient vanishes.
        direction = _vectors.add_scaled(_vectors.normalised(gradient), 1e-6, noise)
        direction = _vectors.normalised(direction)
        value, gradient = value_and_grad(_vectors.add_scaled(params, radius, direction))
        return gradient, jnp.maximum(highest, value)

    here, gradient = value_and_grad(params)
    _, highest = data.loop(0, num_steps, step, (gradient, here))
    rise: jax.Array = highest - here
    _checks.warn_where(
        (rise > 0) & (rise < 2 * loss.eps * jnp.abs(here)),
        f"The digits of {loss.dtype} are too few for so small a rise of the loss: let `loss` "
        "return more of them.",
    )
    return rise
