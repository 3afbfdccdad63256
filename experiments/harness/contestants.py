"""The optimizers, each with the way it spends a round of mini-batches.

To use the library in your own loop, compare `optax_round` with `entropy_round`, then `sgd` with
`entropic_sgd`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from entropy_sgd_jax import diloco, entropy_adam, entropy_sgd, parle, scoping
from experiments.harness.settings import INNER, Settings
from experiments.harness.training import Budget, Contestant, make_budget
from experiments.io.errors import InputError

ROUND = 20  # gradient evaluations per round of an optimizer without an inner loop; even, for SAM
AXIS = "replicas"

# Two ways to spend the same L gradient evaluations, one on each of L mini-batches.


def optax_round(optimizer: Any, grad_fn: Any, params: Any, state: Any, batches: Any) -> Any:
    """L updates, one after each gradient."""

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        grads = grad_fn(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), batches)
    return params, state


def entropy_round(optimizer: Any, grad_fn: Any, params: Any, state: Any, batches: Any) -> Any:
    """One update, which evaluates all L gradients inside."""
    updates, state = optimizer.update(None, state, params, grad_fn=grad_fn, batches=batches)
    return optax.apply_updates(params, updates), state


def sam_round(optimizer: Any, grad_fn: Any, params: Any, state: Any, batches: Any) -> Any:
    """L / 2 updates, each of two gradients on one batch: at x and at the point of highest loss."""

    def without_state(params: Any, batch: Any, carry: None) -> Any:
        return grad_fn(params, batch), carry

    return carried_round(optimizer, without_state, params, state, batches, None, sam=True)[:2]


def carried_round(
    optimizer: Any, grad_fn: Any, params: Any, state: Any, batches: Any, carry: Any, sam: bool
) -> Any:
    """One update after each batch, and the network's state goes on from one to the next.

    Two loops in streaming mode make an inner step in each, at an x′ that `params` then holds; a
    round is L of them, so that `params` is x again. SAM's second gradient starts from the state of
    the first.
    """

    def step(held: Any, batch: Any) -> Any:
        params, state, carry = held
        grads, after = grad_fn(params, batch, carry)
        second = {"grad_fn": lambda params, _: grad_fn(params, batch, carry)[0]} if sam else {}
        updates, state = optimizer.update(grads, state, params, **second)
        return (optax.apply_updates(params, updates), state, after), None

    return jax.lax.scan(step, (params, state, carry), batches)[0]


def carried_replicas_round(optimizer: Any, grad_fn: Any, *rest: Any) -> Any:
    """Every replica has a state of its own, and a gradient on each batch."""
    return carried_round(optimizer, jax.vmap(grad_fn, (0, None, 0)), *rest, sam=False)


# The optimizers.


def sgd(settings: Settings, budget: Budget) -> Contestant:
    return Contestant(_sgd(settings, budget.gradient_evaluations), optax_round)


def adam(settings: Settings, budget: Budget) -> Contestant:
    rate = schedule(settings, budget.gradient_evaluations)
    optimizer = optax.chain(*regularisers(settings), optax.adam(rate, settings.b1, settings.b2))
    return Contestant(optimizer, optax_round)


def adamw(settings: Settings, budget: Budget) -> Contestant:
    rate = schedule(settings, budget.gradient_evaluations)
    descent = optax.scale_by_learning_rate(rate)
    return Contestant(optax.chain(adamw_direction(settings), descent), optax_round)


def sam(settings: Settings, budget: Budget) -> Contestant:
    optimizer = optax.contrib.sam(
        _sgd(settings, budget.rounds * budget.batches),
        optax.chain(optax.contrib.normalize(), optax.sgd(settings.rho)),
        opaque_mode=True,
    )
    return Contestant(optimizer, sam_round)


def entropic_sgd(settings: Settings, budget: Budget) -> Contestant:
    # The outer schedule counts updates, the inner one gradient evaluations.
    rate, momentum = schedule(settings, budget.rounds), settings.momentum or None
    inner = inner_arguments(settings, budget.gradient_evaluations)
    return Contestant(entropy_sgd(rate, momentum, nesterov=True, **inner), entropy_round)


def entropic_adam(settings: Settings, budget: Budget) -> Contestant:
    rate = schedule(settings, budget.rounds)
    inner = inner_arguments(settings, budget.gradient_evaluations)
    return Contestant(entropy_adam(rate, settings.b1, settings.b2, **inner), entropy_round)


def snoo(settings: Settings, budget: Budget) -> Contestant:
    """L steps of AdamW, then one of Nesterov SGD along their whole displacement."""
    optimizer = diloco(
        schedule(settings, budget.rounds),
        settings.momentum or None,
        inner_steps=settings.inner_steps,
        inner_learning_rate=inner_rate(settings, budget.gradient_evaluations),
        inner_transform=adamw_direction(settings),
        streaming=streams(settings),
    )
    return Contestant(optimizer, entropy_round)


def parle_sgd(settings: Settings, budget: Budget) -> Contestant:
    """Replicas that start alike; a round gives each of them L batches of its own.

    In streams all read the same ones, and only noise sets them apart. γ and ρ grow up to the
    authors' ceilings.
    """
    replicas = settings.replicas
    inner = inner_arguments(settings, budget.gradient_evaluations // replicas)
    inner["scope"] = scoping(settings.scope, settings.scope_growth, max(1.0, settings.scope))
    one = parle(
        schedule(settings, budget.rounds),
        settings.momentum or None,
        replica_axis_name=AXIS,
        coupling=scoping(settings.coupling, settings.coupling_growth, max(10.0, settings.coupling)),
        **inner,
    )

    def stream(grads: Any, state: Any, params: Any, **_: Any) -> Any:
        return jax.vmap(one.update, axis_name=AXIS)(grads, state, params)

    def update(grads: Any, state: Any, params: Any, *, grad_fn: Any, batches: Any) -> Any:
        def update_one(state: Any, params: Any, batches: Any) -> Any:
            return one.update(grads, state, params, grad_fn=grad_fn, batches=batches)

        own = jax.tree.map(lambda x: x.reshape(replicas, -1, *x.shape[1:]), batches)
        return jax.vmap(update_one, axis_name=AXIS)(state, params, own)

    return Contestant(
        optax.GradientTransformationExtraArgs(
            jax.vmap(one.init), stream if streams(settings) else update
        ),
        entropy_round,
        prepare=lambda params: jax.tree.map(lambda x: jnp.stack([x] * replicas), params),
        reported=lambda params: jax.tree.map(lambda x: x.mean(0), params),
    )


def sgld(settings: Settings, budget: Budget) -> Contestant:
    """Stochastic gradient Langevin dynamics, with noise of standard deviation √(2η) ε.

    An update of Entropy-SGD is one such step if L = 1, γ = 0, α = 1 and its outer rate is 1.
    """
    optimizer = entropy_sgd(
        1.0,
        inner_steps=1,
        inner_learning_rate=schedule(settings, budget.gradient_evaluations),
        scope=0.0,
        noise_scale=math.sqrt(2) * settings.noise_scale,
        averaging=1.0,
        inner_transform=optax.chain(optax.identity(), *regularisers(settings)),
        streaming=True,
    )
    return Contestant(optimizer, optax_round)


RECIPES: dict[str, Callable[[Settings, Budget], Contestant]] = {
    "entropy_sgd": entropic_sgd,
    "entropy_adam": entropic_adam,
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "sam": sam,
    "snoo": snoo,
    "parle": parle_sgd,
    "sgld": sgld,
}


def prepare(
    name: str, settings: Settings, examples: int, measurements: int
) -> tuple[Contestant, Budget]:
    """The optimizer `name` and its budget of gradient evaluations."""
    per_round = settings.inner_steps if name in INNER.owners else ROUND
    replicas = settings.replicas if name == "parle" else 1
    shared = replicas if streams(settings) else 1  # batches have an order, which each replica needs
    budget = make_budget(
        settings.effective_epochs,
        examples,
        settings.batch_size,
        per_round * replicas,
        gradients_per_batch=2 if name == "sam" else shared,
        measurements=measurements,
        sampling=settings.sampling,
    )
    try:
        contestant = RECIPES[name](settings, budget)
        return carried(name, contestant) if streams(settings) else contestant, budget
    except ValueError as error:  # the library's own message about what it does not allow
        raise InputError(str(error)) from error


def carried(name: str, contestant: Contestant) -> Contestant:
    if name == "parle":
        return contestant._replace(take_round=carried_replicas_round)
    return contestant._replace(take_round=functools.partial(carried_round, sam=name == "sam"))


# Their parts.


def streams(settings: Settings) -> bool:
    return settings.sampling == "streams"


def schedule(settings: Settings, steps: int) -> optax.ScalarOrSchedule:
    """The learning rate over this many updates."""
    peak, by = settings.learning_rate, settings.drop_by
    if settings.schedule == "cosine":
        return cosine(peak, settings.warmup, steps)
    if settings.schedule == "step" and settings.drop_at:
        drops = jnp.array([at * steps for at in settings.drop_at])
        return lambda count: peak / by ** (count >= drops).sum().astype(jnp.float32)
    if settings.schedule == "power":
        power = settings.power
        return lambda count: peak / (1.0 + count) ** power
    return peak


def inner_rate(settings: Settings, gradients: int) -> optax.ScalarOrSchedule:
    """η′ over this many gradients."""
    peak = settings.inner_learning_rate
    if settings.inner_schedule == "cosine":
        return cosine(peak, settings.warmup, gradients)
    return peak


def cosine(peak: float, warmup: float, steps: int) -> optax.Schedule:
    """Up to `peak` in a straight line over a fraction `warmup` of the steps, and down to zero."""
    rising = min(round(warmup * steps), steps - 1)
    if rising == 0:
        return optax.cosine_decay_schedule(peak, steps)
    return optax.warmup_cosine_decay_schedule(peak / rising, peak, rising, steps)


def inner_arguments(settings: Settings, gradients: int) -> dict[str, Any]:
    """What the two-loop optimizers have in common; η′ falls over this many gradients."""
    momentum = [optax.trace(settings.inner_momentum, nesterov=True)]
    decay = weight_decay(settings)
    rest = [*momentum, *decay] if settings.decay_after_momentum else [*decay, *momentum]
    return {
        "inner_steps": settings.inner_steps,
        "inner_learning_rate": inner_rate(settings, gradients),
        "scope": scoping(settings.scope, settings.scope_growth),
        "noise_scale": settings.noise_scale,
        "averaging": settings.averaging,
        "inner_transform": optax.chain(*clipping(settings), *rest),
        "reset_inner_state": settings.reset_inner_state,
        "streaming": streams(settings),
    }


def clipping(settings: Settings) -> list[optax.GradientTransformation]:
    by_norm = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return by_norm + ([optax.clip(settings.clip_value)] if settings.clip_value else [])


def regularisers(settings: Settings) -> list[optax.GradientTransformation]:
    """What is done to every gradient before momentum."""
    return clipping(settings) + weight_decay(settings)


def weight_decay(settings: Settings) -> list[optax.GradientTransformation]:
    decay = settings.weight_decay
    return [optax.add_decayed_weights(decay)] if decay else []


def adamw_direction(settings: Settings) -> optax.GradientTransformation:
    return optax.chain(
        *clipping(settings),
        optax.scale_by_adam(settings.b1, settings.b2),
        optax.add_decayed_weights(settings.weight_decay),
    )


def _sgd(settings: Settings, updates: int) -> optax.GradientTransformationExtraArgs:
    momentum = settings.momentum or None
    return optax.chain(
        *regularisers(settings), optax.sgd(schedule(settings, updates), momentum, nesterov=True)
    )
