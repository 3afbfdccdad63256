"""Replicas that take local steps and then one common outer step: DiLoCo, on one worker SNOO."""

from __future__ import annotations

from typing import Unpack

import jax
import optax

from entropy_sgd_jax import _checks, _noise
from entropy_sgd_jax._averages import average_over_replicas
from entropy_sgd_jax._fragments import Fragments, in_turn
from entropy_sgd_jax._optimizers import build, entropic, sgd
from entropy_sgd_jax._options import with_options_of
from entropy_sgd_jax._transformation import EntropicTransformation
from entropy_sgd_jax._typing import AxisName, LangevinOptions, Scalar, ScalarOrSchedule


@with_options_of(entropic, averaging=1, scope=0, noise_scale=0, reset_inner_state=False)
def diloco(
    learning_rate: ScalarOrSchedule = 0.7,
    momentum: Scalar | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: AxisName | None = None,
    inner_steps: int,
    inner_optimizer: optax.GradientTransformation | None = None,
    inner_learning_rate: ScalarOrSchedule | None = None,
    inner_transform: optax.GradientTransformation | None = None,
    fragments: Fragments | None = None,
    offset: int | None = None,
    delay: int | None = None,
    blend: float | None = None,
    bits: int | None = None,
    top_k: int | None = None,
    **options: Unpack[LangevinOptions],
) -> EntropicTransformation:
    r"""DiLoCo: L local steps of AdamW in each replica, then one Nesterov step on their mean.

    .. math::
      & x'^a \leftarrow x, \quad \text{then } L \text{ times} \quad
        x'^a \leftarrow x'^a - \eta' D(\nabla f^a(x'^a)) \\
      & x \leftarrow \text{Nesterov SGD's step on } x - \frac{1}{n} \sum_a x'^a

    It is Entropy-SGD's loop without scope and noise, keeping the last x′ and the inner state:
    ``entropic(optax.chain(average_over_replicas(replica_axis_name), optax.sgd(learning_rate,
    momentum, nesterov)), averaging=1, scope=0, noise_scale=0, reset_inner_state=False, ...)``.
    Without an axis, on one worker, it is SNOO. With ``inner_optimizer=optax.contrib.muon(...)`` it
    is MuLoCo, and with any optimizer inside and ``momentum=None`` it is Lookahead.

    Cost of an update: L gradient evaluations in each replica, and one all-reduce of the
    parameters, which is 1/L of data-parallel SGD's communication. In streaming mode the all-reduce
    is in the branch that every L-th update takes.

    ``update(..., replica_weight=w)`` weights the mean by a scalar w ≥ 0 of each replica, 0 if it is
    absent. A replica whose pseudo-gradient is not finite counts as 0, takes the others' step, and
    starts its next round at the common x with a fresh inner state. If the weights sum to 0,
    nobody steps.

    All replicas must start from one x: they take the same steps, so a difference at the start
    stays.

    All other arguments are ``entropic``'s. Each replica may itself be data-parallel, over
    ``batch_axis_name``, over which its weight is averaged.

    Args:
      learning_rate: of the outer step; 0.7 is DiLoCo's. 1.0 without momentum sets x to the mean
        of the x′ (local SGD, federated averaging).
      momentum: of the outer steps, in [0, 1); None for none.
      nesterov: whether that momentum is Nesterov's.
      replica_axis_name: the axis of ``vmap``, ``pmap`` or ``shard_map`` over the replicas; None
        for one worker.
      inner_steps: L, local steps per outer step: tens on one worker, 500 in DiLoCo.
      inner_optimizer: takes the local steps at its own learning rate, ``optax.adamw(4e-4)``; a
        schedule in it counts gradients, and η′ is 1. Give it, or the next two.
      inner_learning_rate: of the local steps; a number or a schedule of the gradient evaluations.
      inner_transform: D, the direction of the local steps, uphill, without a learning rate. None
        for that of ``optax.adamw``,
        ``optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4))``.
      fragments: a tree of ints 0 … P − 1 like ``params``, or a function from ``params`` to one;
        streaming mode. Fragment p is synchronised p·L/P gradients before fragment 0, so that one
        all-reduce of a P-th of the parameters goes out every L/P gradients. Each fragment has its
        own inner and outer state, in a state of ``optax.partition``: a norm over all parameters in
        the inner optimizer is one over a fragment.
      offset: the first cycle counts as this many gradients old, below L; streaming mode. No
        schedule is shifted by it. None is 0, here and in the next two, so that
        ``optax.inject_hyperparams`` leaves them alone: they are static.
      delay: τ, below L; streaming mode. The outer step computed at the end of a cycle reaches x′
        τ gradients later, as x′ ← blend · x′ + (1 − blend) · x. A ``scope`` pulls towards the new
        x at once.
      blend: the share of x′ in it, in [0, 1].
      bits: 8 or 4 to exchange the mean in integers of that many bits with feedback of what
        rounding leaves out, see ``average_over_replicas``; None for the parameters' own dtype.
      top_k: how many of each 4,096 numbers are exchanged, the largest, see there; None for all.
      averaging: weight of the newest x′ in the mean that stands for it; 1 keeps the last.
      reset_inner_state: whether each outer step starts the inner optimizer again.

    Returns:
      A transformation whose state is an ``EntropicState``, with ``fragments`` one for each.
      The replicas' x stay equal.

    Raises:
      ValueError: for an argument out of its range, and as ``entropic`` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import anchor_params, diloco
    >>> rate = optax.cosine_decay_schedule(0.03, 500)
    >>> inner = optax.adamw(rate)
    >>> tx = diloco(
    ...     replica_axis_name="replica", inner_steps=5, inner_optimizer=inner, streaming=True
    ... )
    >>> def step(params, state, batch):
    ...     grads = jax.grad(lambda params: jnp.mean((params - batch) ** 2))(params)
    ...     updates, state = tx.update(grads, state, params)
    ...     return optax.apply_updates(params, updates), state
    >>> step = jax.jit(jax.vmap(step, axis_name="replica"))
    >>> params = jnp.zeros(3)  # three replicas of one parameter
    >>> state = jax.vmap(tx.init)(params)
    >>> for _ in range(500):
    ...     params, state = step(params, state, jnp.array([[2.5], [3.0], [3.5]]))
    >>> print(jnp.round(anchor_params(state, params), 1))
    [3. 3. 3.]

    References:
      Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023,
      https://arxiv.org/abs/2311.08105.
      Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
      https://arxiv.org/abs/2501.18512, for fragments, delay and blend.
      "SNOO: Step-K Nesterov Outer Optimizer", 2025, https://arxiv.org/abs/2510.15830.
      "MuLoCo: Muon is a practical inner optimizer for DiLoCo", 2025,
      https://arxiv.org/abs/2505.23725.
      Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019,
      https://arxiv.org/abs/1907.08610.
    """
    step = sgd(learning_rate, momentum, nesterov)
    replica_axis_name = _checks.check("replica_axis_name", replica_axis_name)
    inner_learning_rate, inner_transform = _inner_loop(
        inner_optimizer, inner_learning_rate, inner_transform
    )

    offset = 0 if offset is None else offset
    delay = 0 if delay is None else delay
    blend = 0.0 if blend is None else blend

    def one(offset: int, fragment: int = 0) -> EntropicTransformation:
        own: LangevinOptions = {**options}
        if fragment:  # the first draws the noise of an optimizer alone
            down = 2**32 - fragment  # since replicas count up
            with jax.ensure_compile_time_eval():  # kept beyond the trace in which it is made
                own["key"] = jax.random.fold_in(_noise.typed_key(own.get("key", 0)), down)
        return build(
            optax.chain(average_over_replicas(replica_axis_name, bits=bits, top_k=top_k), step),
            replica_axis_name=replica_axis_name,
            inner_steps=inner_steps,
            inner_learning_rate=inner_learning_rate,
            inner_transform=inner_transform,
            offset=offset,
            delay=delay,
            blend=blend,
            **own,
        )

    alone = one(offset)
    if fragments is None:
        return alone
    streaming = options.get("streaming", False)
    return in_turn(one, fragments, inner_steps, offset, streaming)


def _inner_loop(
    optimizer: optax.GradientTransformation | None,
    learning_rate: ScalarOrSchedule | None,
    direction: optax.GradientTransformation | None,
) -> tuple[ScalarOrSchedule, optax.GradientTransformation]:
    """The rate and the direction of the inner steps, from either way of giving them."""
    if optimizer is not None and learning_rate is None and direction is None:
        downhill = _checks.check("inner_optimizer", optimizer)
        return 1.0, optax.chain(downhill, optax.scale(-1.0))
    if optimizer is not None or learning_rate is None:
        raise _checks.error(
            "inner_optimizer",
            "given without `inner_learning_rate` and `inner_transform`, or one of the first two",
            f"{optimizer!r}, {learning_rate!r} and {direction!r}",
            "Pass a whole optimizer with its own rate, inner_optimizer=optax.adamw(4e-4); or "
            "inner_learning_rate=4e-4, with a direction as `inner_transform` if it is not AdamW's.",
        )
    if direction is None:
        adamw = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4))
        return learning_rate, adamw
    return learning_rate, _checks.check("inner_transform", direction)
