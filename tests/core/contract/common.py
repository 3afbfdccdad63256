"""What the tests of Optax's contract share: every factory in every mode."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import pytest

from entropy_sgd_jax import entropy_sgd
from tests.core.helpers import FACTORIES, MODES, Factory, build

L = 3


every_mode = pytest.mark.parametrize("mode", MODES)


every_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def mixed_params() -> dict[str, Any]:
    """A scalar, a zero-size leaf, a None, an empty dict and a nested NamedTuple."""
    return {
        "scalar": jnp.float32(0.5),
        "empty": jnp.zeros((0, 3), jnp.float32),
        "none": None,
        "nothing": {},
        "layers": [Layer(jnp.ones((2, 3)), None)],
    }


def small_params() -> dict[str, Any]:
    """Few leaves compile fast."""
    return {"w": jnp.ones(2)}


def entropy_sgd_1(**kwargs: Any) -> optax.GradientTransformationExtraArgs:
    """The paper's start: an outer step of 1, without momentum."""
    return entropy_sgd(1.0, **kwargs)


def noisy(factory: Factory, mode: str, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
    """With so much noise that a change of it shows."""
    return build(factory, mode, **{"inner_steps": L, "noise_scale": 0.1, "key": 3, **kwargs})


def quiet(factory: Factory, mode: str, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
    """Without noise, which is most of the compile time."""
    return noisy(factory, mode, **{"noise_scale": 0, **kwargs})
