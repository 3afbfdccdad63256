"""What a GPU or TPU would be given, lowered without one."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from entropy_sgd_jax import diloco, entropy_sgd

L = 5
TO_THE_HOST = ("callback", "infeed", "outfeed", "send", "recv")
OPTIMIZERS = {
    "streaming": entropy_sgd(1.0, inner_steps=L, streaming=True),
    "streaming diloco": diloco(inner_steps=L, inner_optimizer=optax.adamw(1e-3), streaming=True),
    "scan": entropy_sgd(1.0, inner_steps=L),
}


def loss(params: Any, batch: jax.Array) -> jax.Array:
    for layer in params:
        batch = jnp.tanh(batch @ layer["w"] + layer["b"])
    return jnp.sum(batch**2)


@functools.cache
def program(name: str, platform: str) -> str:
    """A train step in StableHLO."""
    tx, grad_fn = OPTIMIZERS[name], jax.grad(loss)

    def step(params: Any, state: Any, batches: jax.Array) -> Any:
        if name == "scan":
            updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
        else:
            updates, state = tx.update(grad_fn(params, batches[0]), state, params)
        return optax.apply_updates(params, updates), state

    params = [{"w": jnp.ones((64, width)), "b": jnp.ones(width)} for width in (64, 10)]
    traced = jax.jit(step).trace(params, tx.init(params), jnp.ones((L, 8, 64)))
    return traced.lower(lowering_platforms=(platform,)).as_text()


def loops(text: str, outermost: bool = False) -> int:
    indent = "    " if outermost else " *"
    return len(re.findall(rf"^{indent}%\S* = stablehlo.while", text, re.MULTILINE))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_asks_the_host(name: str, platform: str) -> None:
    text = program(name, platform)
    calls = re.findall(r"custom_call @(\w+)", text)
    assert not [call for call in calls if any(word in call for word in TO_THE_HOST)]
    assert not re.findall(rf"stablehlo.({'|'.join(TO_THE_HOST)})\b", text)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["streaming", "streaming diloco"])
def test_a_streaming_step_has_two_loops_of_no_or_one_round(name: str, platform: str) -> None:
    """At a cycle's start and at its end; a GPU may read their conditions back to the host."""
    text = program(name, platform)
    (main,) = re.findall(r"func.func public @main.*?^  \}", text, re.DOTALL | re.MULTILINE)
    assert loops(main, outermost=True) == 2
    assert loops(text) == loops(main)  # none is in a function that every step calls


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_noise_is_no_loop_and_no_gather_but_on_a_cpu(platform: str) -> None:
    """There it is drawn in pieces, so that no other core is started."""
    text = program("streaming", platform)
    assert loops(text) < loops(program("streaming", "cpu"))
    assert "stablehlo.gather" not in text
