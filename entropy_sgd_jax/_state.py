"""The state of `entropic`, and what a user may ask of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_sgd_jax import _streaming
from entropy_sgd_jax._diagnostics import EntropicDiagnostics
from entropy_sgd_jax._typing import PyTree, Tree


class EntropicState(NamedTuple):
    """State of `entropic`. Its structure, shapes and dtypes never change.

    In streaming mode `params` is x′. Between two cycles x′ is x, unless `delay` or `blend` keep
    them apart.
    """

    count: jax.Array  # type: ignore[assignment]  # t, outer steps so far; shape (), int32
    rng_key: jax.Array  # never split: the noise is a function of rng_key, t and the step
    # Like params, in the accumulator's dtype. With `averaging=1` μ is x′ and is None, as x′ itself
    # is in scan mode, where each update starts from `params`.
    langevin_iterate: PyTree | None  # x′
    langevin_average: PyTree | None  # μ
    inner_state: PyTree  # of `inner_transform`
    base_state: PyTree  # of `base_optimizer`
    anchor: PyTree | None  # x, like params; None in scan mode
    # Langevin steps since x′ was x, int32; with `delay` or `blend` it goes from L to 2L − 1 after
    # the first cycle. None in scan mode.
    inner_count: jax.Array | None
    diagnostics: EntropicDiagnostics | None  # with `diagnostics=True`


def anchor_params(state: PyTree, params: Tree) -> Tree:
    """Returns x, the parameters to evaluate and to save, in either mode.

    In scan mode `params` is x already. In streaming mode `params` is the Langevin iterate x′, and
    x lies in the state.

    Args:
      state: the optimizer's state; the EntropicState may be at any depth of it, and there may be
        several, one for each group of `optax.partition`. With `params` it may be a stack of
        replicas, along leading axes.
      params: the parameters of the training loop. Leaves that `optax.masked` hides from the
        optimizer are returned from here.

    Returns:
      x, with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: if there is no EntropicState in `state`, or one that belongs to parameters other
        than `params`, as under `optax.flatten`.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import anchor_params, entropy_sgd
    >>> tx = optax.chain(entropy_sgd(1.0, inner_steps=5, streaming=True))
    >>> params = {"w": jnp.ones(3)}
    >>> state = tx.init(params)
    >>> updates, state = jax.jit(tx.update)({"w": jnp.ones(3)}, state, params)
    >>> params = optax.apply_updates(params, updates)  # x′ has moved, x has not
    >>> print(anchor_params(state, params)["w"])
    [1. 1. 1.]
    """
    for found in _entropic_states(state):
        if found.anchor is not None:
            # Where x′ is x, whatever has moved `params` since has moved x.
            params = _overlay(found, params)
    return params


def entropic_diagnostics(state: PyTree) -> EntropicDiagnostics:
    """Returns the record of the last update, wherever in `state` it is.

    Args:
      state: the optimizer's state; the EntropicState may be at any depth of it.

    Returns:
      An `EntropicDiagnostics`, of scalars.

    Raises:
      ValueError: if there is no EntropicState in `state`, if there are several (pass the part of
        the state that you mean), or if it keeps no record.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import entropy_sgd
    >>> tx = optax.chain(entropy_sgd(1.0, inner_steps=5, noise_scale=0, diagnostics=True))
    >>> params = jnp.array([3.0, 4.0])
    >>> grad_fn = jax.grad(lambda params, step: 0.5 * jnp.sum(params**2))
    >>> update = jax.jit(lambda state, params: tx.update(None, state, params, grad_fn=grad_fn))
    >>> updates, state = update(tx.init(params), params)
    >>> record = entropic_diagnostics(state)
    >>> print(f"{record.alignment:.2f} {record.gradient_evaluations}")
    1.00 5
    """
    found = _entropic_states(state)
    if len(found) > 1:
        raise ValueError(
            f"`state` must hold one EntropicState; got {len(found)}. Pass the part that you mean, "
            "for example `state.inner_states['group']` of `optax.partition`."
        )
    if found[0].diagnostics is None:
        raise ValueError(
            "`state` must come from an optimizer built with diagnostics=True; got diagnostics=None."
            " Build it as entropy_sgd(..., diagnostics=True)."
        )
    return found[0].diagnostics


def _entropic_states(state: PyTree) -> list[EntropicState]:
    def is_entropic(node: Any) -> bool:
        return isinstance(node, EntropicState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_entropic) if is_entropic(node)]
    if not found:
        raise ValueError(
            "`state` must be or contain an EntropicState; got none in a "
            f"{type(state).__name__}. Pass the state that `tx.init` returned for an optimizer "
            "of this library."
        )
    return found


def _overlay(state: EntropicState, params: PyTree) -> PyTree:
    """x where `state` has it, and `params` where `state` has a MaskedNode."""
    assert state.inner_count is not None
    at_x = ~state.inner_count.astype(bool)  # without a transfer of a 0

    def is_hidden(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def choose(x: Any, param: Any, iterate: Any) -> Any:
        if is_hidden(x):
            return param
        if jnp.shape(x) != np.shape(param):
            raise ValueError(f"shapes {jnp.shape(x)} and {np.shape(param)}")
        # A stack of replicas has one count for each.
        trailing = (1,) * (jnp.ndim(x) - jnp.ndim(at_x))
        follows = at_x.reshape(at_x.shape + trailing)
        return jnp.where(follows, _streaming.follow(param, iterate, x), x)

    try:
        return jax.tree.map(choose, state.anchor, params, state.langevin_iterate, is_leaf=is_hidden)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`params` must be the tree of arrays that the optimizer updates; got one that does not "
            f"fit its state ({str(error).splitlines()[0]}). For Flax NNX, apply nnx.as_pure to "
            "both. A wrapper that reshapes parameters, such as optax.flatten or "
            "optax.contrib.split_real_and_imaginary, hides x: read `params` after every L-th "
            "update, when they are x."
        ) from error
