"""The loop over Langevin steps around any base optimizer: the paper's Algorithm 1.

Two drivers take the same steps: `LocalEntropy.scan` all L of them in one update,
`LocalEntropy.stream` one in each update.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax import _checks, _collectives, _trees
from entropy_sgd_jax import diagnostics as _diagnostics
from entropy_sgd_jax import noise as _noise
from entropy_sgd_jax.langevin import langevin_step
from entropy_sgd_jax.state import EntropicState

ScalarOrSchedule: TypeAlias = ArrayLike | Callable[[chex.Numeric], chex.Numeric]


class Chain(NamedTuple):
    """What a Langevin step moves."""

    iterate: optax.Params  # x′
    average: optax.Params  # μ
    inner_state: optax.OptState
    record: _diagnostics.EntropicDiagnostics | None


@dataclasses.dataclass(frozen=True)
class LocalEntropy:
    """The algorithm over the arguments of `entropic`, which documents them."""

    base_optimizer: optax.GradientTransformationExtraArgs
    inner_steps: int
    inner_learning_rate: ScalarOrSchedule
    scope: ScalarOrSchedule
    noise_scale: ScalarOrSchedule
    averaging: ScalarOrSchedule
    inner_transform: optax.GradientTransformationExtraArgs
    reset_inner_state: bool
    noise: str
    scale_by_scope: bool
    streaming: bool
    batch_axis_name: Any
    accumulator_dtype: Any
    diagnostics: bool
    key: Any

    def init(self, params: optax.Params) -> EntropicState:
        """The state before the first update; copies `params`, which may then be donated."""
        _checks.params(params)
        iterate = self._accumulators(params, copy=True)
        return EntropicState(
            count=jnp.zeros((), jnp.int32),
            rng_key=_noise.typed_key(self.key),
            langevin_iterate=iterate,
            langevin_average=self._accumulators(params, copy=True),
            inner_state=self.inner_transform.init(iterate),
            base_state=self.base_optimizer.init(params),
            anchor=jax.tree.map(jnp.array, params) if self.streaming else None,
            inner_count=jnp.zeros((), jnp.int32) if self.streaming else None,
            diagnostics=self._blank_record(iterate),
        )

    def scan(
        self,
        grads: optax.Updates | None,
        state: EntropicState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[..., Any] | None = None,
        value_and_grad_fn: Callable[..., Any] | None = None,
        batches: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EntropicState]:
        """One update: L Langevin steps, then the base optimizer's."""
        calls = self.inner_steps if grads is None else self.inner_steps - 1
        _checks.params(params)
        _checks.bound("batch_axis_name", self.batch_axis_name)
        _checks.stacked(batches, calls, self.inner_steps)
        if calls:
            _checks.whole(params)
            evaluate = _checks.gradient_function(grad_fn, value_and_grad_fn, batches, extra_args)

        anchor = self._accumulators(params)
        chain = self._start(anchor, state)
        keys = self._step_keys(state, jnp.arange(self.inner_steps))
        rows, noise = _noise.prepare(self.noise, keys, anchor)
        first_loss = self._incoming_loss(extra_args)
        if grads is not None:  # spent as the first Langevin gradient
            grads = self._incoming(grads, params)
            first = noise(_first(rows))
            chain = self._step(chain, anchor, state.count, 0, first, grads, first_loss)

        def body(chain: Chain, inputs: Any) -> tuple[Chain, None]:
            call, row, batch = inputs
            point = _trees.cast_like(chain.iterate, params)
            loss, grads = _collectives.mean(
                evaluate(self._local(point), call if batches is None else batch),
                self.batch_axis_name,
            )
            step = call + (self.inner_steps - calls)
            losses = call if first_loss is None else step
            chain = self._step(chain, anchor, state.count, step, noise(row), grads, loss, losses)
            return chain, None

        if calls:
            rows = jax.tree.map(lambda rows: rows[-calls:], rows)
            chain, _ = lax.scan(body, chain, (jnp.arange(calls), rows, batches))
        return self._descend(chain, anchor, params, state, extra_args)

    def stream(
        self,
        grads: optax.Updates,
        state: EntropicState,
        params: optax.Params | None = None,
        *,
        batches: None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EntropicState]:
        """One update: one Langevin step; after every L-th, the base optimizer's.

        Where x′ turns non-finite, the chain starts afresh from x.
        """
        _checks.params(params)
        _checks.bound("batch_axis_name", self.batch_axis_name)
        _checks.one_gradient(batches)
        grads = self._incoming(grads, params)
        x, chain = self._resume(params, state)
        anchor = self._accumulators(x)

        key = _first(self._step_keys(state, state.inner_count[None]))
        noise = _noise.draw(self.noise, key, anchor)
        loss = self._incoming_loss(extra_args)
        chain = self._step(chain, anchor, state.count, state.inner_count, noise, grads, loss)
        # In the dtype of `params`, which are x′: a float16 overflows before its accumulator does.
        finite = _trees.all_finite(_trees.cast_like(chain.iterate, params))
        record = chain.record
        chain = _trees.unless(~finite, chain, lambda _: self._afresh(anchor, state, record))
        kept = state._replace(
            langevin_iterate=chain.iterate,
            langevin_average=chain.average,
            inner_state=chain.inner_state,
            anchor=x,
            inner_count=state.inner_count + 1,
            diagnostics=chain.record,
        )

        last = state.inner_count == self.inner_steps - 1
        state = _trees.unless(last, kept, lambda kept: self._move(kept, params, extra_args))
        iterate = _trees.cast_like(state.langevin_iterate, params)
        target = _trees.where(last, state.anchor, iterate)
        return jax.tree.map(jnp.subtract, target, params), state

    def base_alone(
        self,
        grads: optax.Updates,
        state: EntropicState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EntropicState]:
        """L = 0: the base optimizer on the incoming gradient, the paper's baseline."""
        _checks.params(params)
        _checks.bound("batch_axis_name", self.batch_axis_name)
        grads = self._incoming(grads, params)
        updates, base_state = self.base_optimizer.update(
            grads, state.base_state, params, **extra_args
        )
        count = optax.safe_increment(state.count)
        return updates, state._replace(count=count, base_state=base_state)

    def _resume(self, params: optax.Params, state: EntropicState) -> tuple[optax.Params, Chain]:
        """x, and the chain as the last update left it; at a cycle's start a new one."""
        left = state.langevin_iterate
        iterate = jax.tree.map(_trees.follow, params, left, left)
        # Without x′: carried through a loop, it would have to be a copy of `params`.
        chain = Chain(None, state.langevin_average, state.inner_state, state.diagnostics)

        def begin(known: tuple[optax.Params, Chain]) -> tuple[optax.Params, Chain]:
            x = jax.tree.map(_trees.follow, params, left, known[0])
            return x, self._start(self._accumulators(x), state)._replace(iterate=None)

        first = state.inner_count == 0
        x, chain = _trees.unless(first, (state.anchor, chain), begin)
        return x, chain._replace(iterate=_trees.where(first, self._accumulators(x), iterate))

    def _move(
        self, kept: EntropicState, params: optax.Params, extra_args: dict[str, Any]
    ) -> EntropicState:
        """The end of a cycle: x moves, and x′ is where `params` will land beside it."""
        x = kept.anchor
        chain = Chain(
            kept.langevin_iterate, kept.langevin_average, kept.inner_state, kept.diagnostics
        )
        updates, moved = self._descend(chain, self._accumulators(x), x, kept, extra_args)
        new = optax.apply_updates(x, updates)
        landed = self._accumulators(jax.tree.map(_trees.landing, params, new))
        return moved._replace(langevin_iterate=landed, anchor=new, inner_count=0 * kept.inner_count)

    def _start(self, anchor: optax.Params, state: EntropicState) -> Chain:
        """x′, μ ← x."""
        record = state.diagnostics
        if record is not None:  # with a place for the gradient to come
            record = record._replace(first_gradient=anchor)
        chain = self._afresh(anchor, state, record)
        return chain if self.reset_inner_state else chain._replace(inner_state=state.inner_state)

    def _afresh(self, anchor: optax.Params, state: EntropicState, record: Any) -> Chain:
        """A chain at x, as device-dependent as the one that takes its place."""
        like = [state.count, *jax.tree.leaves(anchor)[:1]]
        iterate, inner_state = _collectives.varying(
            (anchor, self.inner_transform.init(anchor)), *like
        )
        return Chain(iterate, iterate, inner_state, record)

    def _step(
        self,
        chain: Chain,
        anchor: optax.Params,
        count: chex.Array,
        step: chex.Numeric,
        noise: Any,
        grads: optax.Updates,
        loss: chex.Numeric | None = None,
        losses: chex.Numeric | None = None,
    ) -> Chain:
        """One Langevin step of the whole tree, on one gradient at x′."""
        grads = _trees.cast_like(grads, anchor)
        direction, inner_state = self.inner_transform.update(
            grads, chain.inner_state, chain.iterate
        )
        direction = _trees.cast_like(direction, anchor)
        move_leaf = functools.partial(
            langevin_step,
            step_size=_at(self.inner_learning_rate, count * self.inner_steps + step),
            scope=_at(self.scope, count),
            noise_scale=_at(self.noise_scale, count),
            averaging=_at(self.averaging, count),
        )
        move = jax.jit(move_leaf, inline=True)  # traced once for each shape, not for each leaf
        moved = jax.tree.map(move, chain.iterate, chain.average, direction, anchor, noise)
        iterate = jax.tree.map(lambda _, pair: pair[0], anchor, moved)
        average = jax.tree.map(lambda _, pair: pair[1], anchor, moved)
        record = chain.record
        if record is not None:
            displacement = jax.tree.map(jnp.subtract, iterate, anchor)
            losses = step if losses is None else losses
            record = _diagnostics.observe_step(record, step, losses, loss, grads, displacement)
        return Chain(iterate, average, inner_state, record)

    def _descend(
        self,
        chain: Chain,
        anchor: optax.Params,
        params: optax.Params,
        state: EntropicState,
        extra_args: dict[str, Any],
    ) -> tuple[optax.Updates, EntropicState]:
        """x ← the base optimizer's step on G = x − μ.

        A step that is not finite is not taken, and the next chain starts afresh. The test is on the
        updates, which have been through the base optimizer's own means over devices, so that all
        devices decide alike.
        """
        scope = _at(self.scope, state.count)
        pseudo_gradient = jax.tree.map(
            lambda x, mean: (x - mean) * jnp.asarray(scope if self.scale_by_scope else 1, x.dtype),
            anchor,
            chain.average,
        )
        updates, base_state = self.base_optimizer.update(
            _trees.cast_like(pseudo_gradient, params), state.base_state, params, **extra_args
        )
        record = chain.record
        if record is not None:
            evaluations = (state.count + 1) * self.inner_steps
            record = _diagnostics.observe_update(record, pseudo_gradient, scope, evaluations)
            record = record if self.streaming else record._replace(first_gradient=None)
        updates = _trees.cast_like(updates, params)
        finite = sound = _trees.all_finite(updates)
        if not (self.streaming or self.reset_inner_state):
            # The base optimizer may hide what would live on in D; a streamed step has looked.
            sound = finite & _trees.all_finite(chain.iterate)
        chain = chain._replace(record=None)
        # Streaming starts x′ and μ anew in any case, as the next cycle begins.
        lost = chain.inner_state if self.streaming else chain

        def refuse(_: Any) -> tuple[chex.Array, Any]:
            fresh = self._afresh(anchor, state, None)
            return finite, fresh.inner_state if self.streaming else fresh

        taken, lost = _trees.unless(~sound, (finite | True, lost), refuse)
        chain = chain._replace(inner_state=lost) if self.streaming else lost
        return _trees.where(taken, updates, _trees.zeros_like(updates)), state._replace(
            count=optax.safe_increment(state.count),
            langevin_iterate=chain.iterate,
            langevin_average=chain.average,
            inner_state=chain.inner_state,
            base_state=_trees.where(taken, base_state, state.base_state),
            diagnostics=record,
        )

    def _local(self, point: optax.Params) -> optax.Params:
        """x′ as the device's own, so that its gradient is that of the device's own loss.

        Under `shard_map(check_vma=True)` the gradient at a replicated point is summed over the
        devices behind the user's back: a mean of it would be n times too large.
        """
        if self.batch_axis_name is None:
            return point
        return _collectives.varying(point, lax.axis_index(self.batch_axis_name))

    def _incoming(self, grads: optax.Updates, params: optax.Params) -> optax.Updates:
        """The caller's gradient, checked and averaged over devices."""
        _checks.incoming(grads, params, self.streaming)
        return _collectives.mean(grads, self.batch_axis_name)

    def _incoming_loss(self, extra_args: dict[str, Any]) -> chex.Numeric | None:
        """The loss at the caller's gradient, where he passed `value`, averaged over devices."""
        return _collectives.mean(extra_args.get("value"), self.batch_axis_name)

    def _step_keys(self, state: EntropicState, steps: chex.Array) -> _noise.StepKey | None:
        """One key for each Langevin step; None where the noise is statically zero."""
        if isinstance(self.noise_scale, float) and self.noise_scale == 0:
            return None
        return _noise.step_keys(self.noise, state.rng_key, state.count, steps)

    def _blank_record(self, iterate: optax.Params) -> _diagnostics.EntropicDiagnostics | None:
        if not self.diagnostics:
            return None
        # Streaming has to remember a cycle's first gradient from update to update; a scan has not.
        return _diagnostics.blank(_trees.zeros_like(iterate) if self.streaming else None)

    def _accumulators(self, params: optax.Params, copy: bool = False) -> optax.Params:
        """`params` in the accumulator's dtype: what is asked for, else at least float32."""

        def accumulator(param: chex.Array) -> chex.Array:
            dtype = self.accumulator_dtype or jnp.promote_types(jnp.result_type(param), jnp.float32)
            return jnp.array(param, dtype, copy=copy)

        return jax.tree.map(accumulator, params)


def _at(value: ScalarOrSchedule, count: chex.Numeric) -> ArrayLike:
    return value(count) if callable(value) else value


def _first(rows: Any) -> Any:
    return jax.tree.map(lambda row: row[0], rows)
