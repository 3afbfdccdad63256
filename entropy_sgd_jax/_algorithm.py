"""The paper's Algorithm 1 around any base optimizer: start, Langevin step, descend.

Two drivers take the same steps: `scan` all L of them in one update, `stream` one in each update.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from entropy_sgd_jax import (
    _collectives,
    _diagnostics,
    _gradients,
    _guard,
    _noise,
    _protocol,
    _streaming,
    _trees,
)
from entropy_sgd_jax._control import apply_if, settled
from entropy_sgd_jax._gradients import Gradient
from entropy_sgd_jax._langevin import langevin_step
from entropy_sgd_jax._state import EntropicState
from entropy_sgd_jax._typing import Key, PyTree, ScalarOrSchedule

Record: TypeAlias = _diagnostics.EntropicDiagnostics | None  # if there are diagnostics


class Chain(NamedTuple):
    """What a Langevin step moves."""

    iterate: PyTree  # x′
    average: PyTree | None  # μ; None where that is x′, since α is 1
    inner_state: optax.OptState  # of D
    record: Record

    @property
    def mean(self) -> PyTree:
        """⟨x′⟩, as far as the chain has come."""
        return self.iterate if self.average is None else self.average


class Anchor(NamedTuple):
    """Where the chain started."""

    x: PyTree  # in the accumulator's dtype
    params: PyTree  # the same, in the parameters' own
    t: jax.Array  # outer steps before


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """Algorithm 1 over the arguments of `entropic`, which documents them."""

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
    axes: _gradients.Axes
    accumulator_dtype: DTypeLike | None
    diagnostics: bool
    key: Key
    # For a stream that is one of several fragments, or whose outer steps are delayed: see `diloco`.
    offset: int = 0
    delay: int = 0
    blend: float = 0.0

    def start(self, anchor: Anchor, inner_state: optax.OptState, record: Record) -> Chain:
        """x′, μ ← x."""
        if self.reset_inner_state:
            inner_state = self._restarted(anchor)(inner_state)
        return self._own(self._fresh(anchor, inner_state, record), anchor)

    def step(
        self, chain: Chain, anchor: Anchor, gradient: Gradient, count: jax.Array, xi: PyTree
    ) -> Chain:
        """x′ ← x′ − η′ (D(∇f(x′)) + γ (x′ − x)) + √η′ ε ξ,  μ ← (1 − α) μ + α x′."""
        grads = _trees.cast_like(gradient.value, anchor.x)
        direction, inner_state = self.inner_transform.update(
            grads, chain.inner_state, chain.iterate
        )
        move_leaf = functools.partial(
            langevin_step,
            step_size=_at(self.inner_learning_rate, count),
            scope=_at(self.scope, anchor.t),
            noise_scale=_at(self.noise_scale, anchor.t),
            averaging=_at(self.averaging, anchor.t),
        )
        move = jax.jit(move_leaf, inline=True)  # traced once for each shape, not for each leaf
        direction = _trees.cast_like(direction, anchor.x)
        moved = jax.tree.map(move, chain.iterate, chain.mean, direction, anchor.x, xi)
        iterate, average = _trees.unzip(anchor.x, moved)
        average = _guard.remember_overflow(average, iterate, anchor.params)
        if self._keeps_last:  # the two are one, but for what it remembers
            iterate, average = average, None
        record = chain.record
        if record is not None:
            losses = (gradient.loss, gradient.known_losses)
            record = _diagnostics.observe_step(
                record, gradient.step, grads, *losses, iterate, anchor.x
            )
        return Chain(iterate, average, inner_state, record)

    def descend(
        self, chain: Chain, anchor: Anchor, base_state: optax.OptState, extra_args: dict[str, Any]
    ) -> tuple[PyTree, optax.OptState, Record, jax.Array]:
        """x ← the base optimizer's step on G = x − μ, and whether the chain counts.

        A chain that has not stayed finite gives NaN as G: a mean over replicas leaves it out, any
        other base optimizer passes it on. A step that is not finite is not taken. In both cases
        the chain does not count. The second test is on values that the base optimizer has averaged
        over devices, so that all devices decide alike.
        """
        scope = _at(self.scope, anchor.t)
        initial = self.inner_transform.init(anchor.x)
        sound = _guard.all_finite(chain.mean)
        sound = settled(sound & _guard.stays_finite(chain.inner_state, initial))

        difference = jax.tree.map(
            lambda x, mean: jnp.where(sound, x - mean, jnp.nan), anchor.x, chain.mean
        )
        direction = difference
        if self.scale_by_scope:
            direction = jax.tree.map(lambda leaf: leaf * jnp.asarray(scope, leaf.dtype), difference)
        updates, moved = self.base_optimizer.update(
            _trees.cast_like(direction, anchor.params), base_state, anchor.params, **extra_args
        )
        updates = _trees.cast_like(updates, anchor.params)
        landed = optax.apply_updates(anchor.params, updates)
        initial = self.base_optimizer.init(anchor.params)
        taken = settled(_guard.all_finite(landed) & _guard.stays_finite(moved, initial))
        counts = sound & taken
        record = chain.record
        if record is not None:
            evaluations = self._before(anchor.t) + self.inner_steps
            record = _diagnostics.observe_update(record, difference, scope, evaluations, counts)
        updates = _trees.where(taken, updates, _trees.zeros_like(updates))
        return updates, _trees.where(taken, moved, base_state), record, counts

    def scan(
        self,
        grads: PyTree | None,
        state: EntropicState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EntropicState]:
        """One update: L Langevin steps, then the base optimizer's."""
        anchor = self._arrive(params, state)
        first = None
        if grads is not None:  # spent as the first of the L
            first = self.axes.given(grads, params, 0, "in scan mode", extra_args.get("value"))
        gradient = _gradients.scanned(self.axes, params, self.inner_steps, first, **extra_args)
        rows, xi = _noise.prepare(
            self.noise, self._keys(state, jnp.arange(self.inner_steps, dtype=jnp.int32)), anchor.x
        )

        record = state.diagnostics
        if record is not None:  # with a place for the gradient to come
            record = record._replace(first_gradient=anchor.x)
        chain = self.start(anchor, state.inner_state, record)
        if first is not None:
            chain = self.step(chain, anchor, first, self._before(anchor.t), xi(_row(rows, 0)))

        def body(chain: Chain, inputs: Any) -> tuple[Chain, None]:
            call, row, batch = inputs
            found = gradient(chain.iterate, call, batch)
            count = self._before(anchor.t) + found.step
            return self.step(chain, anchor, found, count, xi(row)), None

        if gradient.calls:
            rows = jax.tree.map(lambda rows: rows[gradient.spent :], rows)
            calls = jnp.arange(gradient.calls, dtype=jnp.int32)
            chain, _ = lax.scan(body, chain, (calls, rows, extra_args.get("batches")))
        updates, base_state, record, counts = self.descend(
            chain, anchor, state.base_state, self.axes.for_base(extra_args)
        )
        chain = apply_if(~counts, functools.partial(self._restart, anchor), chain)
        return updates, state._replace(
            count=optax.safe_increment(state.count),
            langevin_iterate=None if self._keeps_last else chain.iterate,
            langevin_average=chain.average,
            inner_state=chain.inner_state,
            base_state=base_state,
            diagnostics=None if record is None else record._replace(first_gradient=None),
        )

    def stream(
        self,
        grads: PyTree,
        state: EntropicState,
        params: PyTree | None = None,
        *,
        batches: None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EntropicState]:
        """One update: one Langevin step; after every L-th, the base optimizer's."""
        self._arrive(params, state)
        _protocol.one_gradient(batches)
        state, begun = self._own_parts(state), state.inner_count
        assert begun is not None
        made = begun % self.inner_steps  # steps of this chain
        step = made + jnp.where(state.count == 0, self.offset, 0)
        gradient = self.axes.given(
            grads, params, made, "in streaming mode", extra_args.get("value")
        )
        anchor, chain = self._resume(params, state)
        xi = _noise.draw(self.noise, _row(self._keys(state, step[None]), 0), anchor.x)
        count = self._before(state.count) + step - self.offset
        chain = self.step(chain, anchor, gradient, count, xi)

        def descend(carry: Any) -> Any:
            x, chain, base_state = carry
            anchor = self._anchor(x, state)
            updates, base_state, record, counts = self.descend(
                chain, anchor, base_state, self.axes.for_base(extra_args)
            )
            x, inner_state = optax.apply_updates(x, updates), chain.inner_state
            if not self.reset_inner_state:
                inner_state = apply_if(~counts, self._restarted(anchor), inner_state)
            target = x
            if self._waits:
                # A chain that does not count goes on from x; with a delay, from the one before.
                home = anchor.x if self.delay else self._accumulators(x)
                iterate = _trees.where(counts, chain.iterate, home)
                target = iterate if self.delay else self._blended(iterate, x)
            landed = self._anchor(self._landing(target, params), state)
            return x, self.start(landed, inner_state, record), base_state

        def arrive(carry: Any) -> Any:
            x, chain, base_state = carry
            landed = self._landing(self._blended(chain.iterate, x), params)
            return x, chain._replace(iterate=self._accumulators(landed)), base_state

        last = step == self.inner_steps - 1
        carry = apply_if(last, descend, (anchor.params, chain, state.base_state))
        if self.delay:
            carry = apply_if((step == self.delay - 1) & (state.count > 0), arrive, carry)
        x, chain, base_state = carry
        # Where x′ starts at x, the update leads to x itself, of which x′ may be the rounded sum.
        target = _trees.cast_like(chain.iterate, params)
        if not self._waits:
            target = _trees.where(last, x, target)
        updates = jax.tree.map(_streaming.step_to, target, params)
        return updates, state._replace(
            count=jnp.where(last, optax.safe_increment(state.count), state.count),
            langevin_iterate=chain.iterate,
            langevin_average=chain.average,
            inner_state=chain.inner_state,
            base_state=base_state,
            anchor=x,
            inner_count=jnp.where(last, self.inner_steps if self._waits else 0, begun + 1),
            diagnostics=chain.record,
        )

    def base_alone(
        self,
        grads: PyTree,
        state: EntropicState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EntropicState]:
        """L = 0: the base optimizer on the incoming gradient, the paper's baseline."""
        self._arrive(params, state)
        gradient = self.axes.given(grads, params, 0, "with inner_steps=0")
        updates, base_state = self.base_optimizer.update(
            _trees.cast_like(gradient.value, params),
            state.base_state,
            params,
            **self.axes.for_base(extra_args),
        )
        count = optax.safe_increment(state.count)
        updates = _trees.cast_like(updates, params)
        return updates, state._replace(count=count, base_state=base_state)

    def init(self, params: PyTree) -> EntropicState:
        """The state before the first update.

        Everything in it is its own, even what Optax's states take from the parameters, so that
        `params` and the state may be donated.
        """
        _protocol.params(params)
        _protocol.warn_not_finite(params)
        iterate = self._accumulators(params, copy=True)
        record = None
        if self.diagnostics:
            # Streaming has to remember a cycle's first gradient from update to update.
            record = _diagnostics.blank(_trees.zeros_like(iterate) if self.streaming else None)
        state = EntropicState(
            count=jnp.zeros((), jnp.int32),
            rng_key=_noise.typed_key(self.key),
            langevin_iterate=iterate if self.streaming or not self._keeps_last else None,
            langevin_average=None if self._keeps_last else self._accumulators(params, copy=True),
            inner_state=jax.tree.map(jnp.array, self.inner_transform.init(iterate)),
            base_state=jax.tree.map(jnp.array, self.base_optimizer.init(params)),
            anchor=jax.tree.map(jnp.array, params) if self.streaming else None,
            inner_count=jnp.zeros((), jnp.int32) if self.streaming else None,
            diagnostics=record,
        )
        return self._own_parts(state)

    def _before(self, t: jax.Array) -> jax.Array:
        """How many gradients the first t updates took; stops at the end of int32, as t does."""
        most = (jnp.iinfo(t.dtype).max - self.inner_steps) // self.inner_steps
        return jnp.minimum(t, most) * self.inner_steps

    def _arrive(self, params: PyTree, state: EntropicState) -> Anchor:
        """x, taken from `params`; checks the arguments that every update needs."""
        _protocol.params(params)
        self.axes.check()
        transforms = {"inner_state": self.inner_transform, "base_state": self.base_optimizer}
        _protocol.state(state, params, self.streaming, **transforms)
        return self._anchor(params, state)

    def _anchor(self, params: PyTree, state: EntropicState) -> Anchor:
        return Anchor(self._accumulators(params), params, state.count)

    def _resume(self, params: PyTree, state: EntropicState) -> tuple[Anchor, Chain]:
        """x and the chain as the last update left them, or as the user has moved them since."""
        left = state.langevin_iterate
        chain = Chain(left, state.langevin_average, state.inner_state, state.diagnostics)

        def follow(known: Any) -> Any:
            x, left, _ = known
            anchor = self._anchor(jax.tree.map(_streaming.follow, params, left, x), state)
            return anchor.params, anchor.x, None if self._keeps_last else anchor.x

        # The test is on what is carried, or XLA would compute it ahead of the loop in every step.
        assert state.inner_count is not None
        first = state.inner_count == 0
        x, left, average = apply_if(first, follow, (state.anchor, left, chain.average))
        anchor = self._anchor(x, state)
        iterate = _trees.where(first, anchor.x, self._iterate(params, left))
        return anchor, chain._replace(iterate=iterate, average=average)

    def _iterate(self, params: PyTree, left: PyTree) -> PyTree:
        """x′: what `params` holds of it, and the digits that only the state has."""
        iterate = jax.tree.map(_streaming.resume, params, left)
        if self._keeps_last:  # no μ remembers what x′ has been
            iterate = jax.tree.map(_streaming.spoiled, iterate, left)
        return iterate

    @property
    def _waits(self) -> bool:
        """Whether x′ does not start each cycle at x."""
        return self.delay > 0 or self.blend != 0

    def _blended(self, iterate: PyTree, x: PyTree) -> PyTree:
        """The mixture of x′ and x at which x′ goes on."""

        def mix(iterate: jax.Array, x: jax.Array) -> jax.Array:
            blend = jnp.asarray(self.blend, iterate.dtype)
            return blend * iterate + (1 - blend) * jnp.asarray(x, iterate.dtype)

        return jax.tree.map(mix, iterate, x)

    def _landing(self, target: PyTree, params: PyTree) -> PyTree:
        """Where `params` will land when it is moved to `target`."""
        return jax.tree.map(_streaming.landing, params, _trees.cast_like(target, params))

    def _restart(self, anchor: Anchor, chain: Chain) -> Chain:
        """The chain back at x, with D as at its start."""
        return self._fresh(anchor, self._restarted(anchor)(chain.inner_state), chain.record)

    def _restarted(self, anchor: Anchor) -> Callable[[optax.OptState], optax.OptState]:
        return lambda state: _guard.restarted(self.inner_transform, state, anchor.x)

    def _fresh(self, anchor: Anchor, inner_state: optax.OptState, record: Record) -> Chain:
        """A chain that has made no step from x."""
        return Chain(anchor.x, None if self._keeps_last else anchor.x, inner_state, record)

    @property
    def _keeps_last(self) -> bool:
        """Whether μ is x′, which the Python number 1 as α says."""
        return isinstance(self.averaging, float) and self.averaging == 1

    def _own(self, chain: Chain, anchor: Anchor) -> Chain:
        """`chain` marked as differing from device to device, as it will after a step."""
        like = [anchor.t, *jax.tree.leaves(anchor.x)[:1]]
        own: Chain = _collectives.own(_collectives.varying(chain, *like), self.axes.replicas)
        return own

    def _own_parts(self, state: EntropicState) -> EntropicState:
        """`state` with what replicas do not share marked as such, wherever it came from.

        In scan mode they share the base optimizer's state, if it is given means over them.
        """
        shared = ["count", "rng_key", "inner_count", *([] if self.streaming else ["base_state"])]
        own = {name: part for name, part in state._asdict().items() if name not in shared}
        return state._replace(**_collectives.own(own, self.axes.replicas))

    def _keys(self, state: EntropicState, steps: jax.Array) -> _noise.StepKey | None:
        """One key for each Langevin step; None if the noise is statically zero."""
        if isinstance(self.noise_scale, float) and self.noise_scale == 0:
            return None
        key = _noise.replica_key(state.rng_key, self.axes.replicas)
        return _noise.step_keys(self.noise, key, state.count, steps)

    def _accumulators(self, params: PyTree, copy: bool = False) -> PyTree:
        """`params` in the accumulator's dtype: what is asked for, else at least float32."""

        def accumulator(param: jax.Array) -> jax.Array:
            return jnp.array(param, self.accumulator_dtype or _trees.wide_dtype(param), copy=copy)

        return jax.tree.map(accumulator, params)


def _at(value: ScalarOrSchedule, count: jax.Array) -> ArrayLike:
    return value(count) if callable(value) else value


def _row(rows: Any, place: int) -> Any:
    return jax.tree.map(lambda row: row[place], rows)
