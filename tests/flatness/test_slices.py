"""The loss on lines and planes, against NumPy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax import flatness
from tests.core.helpers import double_precision
from tests.flatness.cases import network, plain, rotated

RNG = np.random.default_rng(3)
FIRST, SECOND, THIRD = RNG.normal(size=(3, 6))
NET = network(4, np.float32)


def bowl(params: Any, batch: Any) -> Any:
    return params @ rotated(np.arange(6.0)) @ params * jnp.mean(batch)


def test_line_is_that_of_the_quadratic() -> None:
    with double_precision():
        hessian = np.asarray(rotated(np.arange(6.0)))
        line = flatness.loss_on_line(bowl, FIRST, SECOND, [np.ones(3), np.full(1, 5.0)], points=9)
    distance = np.linalg.norm(SECOND - FIRST)
    np.testing.assert_allclose(line.places, [0, distance], rtol=1e-12)
    np.testing.assert_allclose(line.x, np.linspace(-0.5, 1.5, 9) * distance, rtol=1e-12)
    points = FIRST + np.linspace(-0.5, 1.5, 9)[:, None] * (SECOND - FIRST)
    losses = 2 * np.einsum("pi,ij,pj->p", points, hessian, points)
    np.testing.assert_allclose(line.losses, losses, rtol=1e-12)


def test_plane_is_that_of_the_quadratic_and_holds_all_three() -> None:
    with double_precision():
        hessian = np.asarray(rotated(np.arange(6.0)))
        plane = jax.jit(flatness.loss_on_plane, static_argnums=0, static_argnames="points")(
            bowl, FIRST, SECOND, THIRD, jnp.ones((1, 2)), points=5
        )
    rotation, _ = np.linalg.qr(np.stack([SECOND - FIRST, THIRD - FIRST], axis=1))
    rotation *= np.sign(np.array([SECOND - FIRST, THIRD - FIRST]) @ rotation).diagonal()
    places = (np.array([FIRST, SECOND, THIRD]) - FIRST) @ rotation
    np.testing.assert_allclose(plane.places, places, atol=1e-12)
    margin = 0.3 * np.ptp(places, axis=0).max()
    for side, axis in ((plane.x, places[:, 0]), (plane.y, places[:, 1])):
        np.testing.assert_allclose(side, np.linspace(axis.min() - margin, axis.max() + margin, 5))
    for row, y in enumerate(plane.y):
        for column, x in enumerate(plane.x):
            w = FIRST + rotation @ np.array([x, y])
            np.testing.assert_allclose(plane.losses[row, column], w @ hessian @ w, rtol=1e-10)


def test_half_precision_under_strict_promotion() -> None:
    half, other = (
        jax.tree.map(lambda leaf, s=s: (s * leaf).astype(jnp.bfloat16), NET.params) for s in (1, -1)
    )

    def loss(params: Any, batch: Any) -> Any:
        return NET.loss(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), batch)

    with jax.numpy_dtype_promotion("strict"):
        line = flatness.loss_on_line(loss, half, other, NET.ragged, points=5)
    np.testing.assert_allclose(line.losses[1], loss(half, NET.whole), rtol=1e-5)
    np.testing.assert_allclose(line.losses[3], loss(other, NET.whole), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: flatness.loss_on_line(bowl, FIRST, FIRST, [None]),
            "`second` must be apart from `first`; got a distance of 0",
        ),
        (
            lambda: flatness.loss_on_plane(bowl, FIRST, SECOND, 3 * SECOND - 2 * FIRST, [None]),
            "`third` must be apart from the line through `first` and `second`",
        ),
        (
            lambda: flatness.loss_on_line(bowl, FIRST, SECOND[:3], [None]),
            r"`second` must be of the parameter's shape \(6,\); got the shape \(3,\)",
        ),
        (
            lambda: flatness.loss_on_plane(plain(NET.loss), FIRST, SECOND, THIRD, [], points=1),
            "`points` must be .* got 1",
        ),
    ],
)
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_need_no_matplotlib() -> None:
    program = """
import sys
sys.modules["matplotlib"] = None  # as if it were not installed
import jax.numpy as jnp
from entropy_sgd_jax import flatness
line = flatness.loss_on_line(lambda w, b: w @ w, jnp.zeros(2), jnp.ones(2), [None], points=3)
print(line.losses)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[0.5 0.5 4.5]", done.stderr


def test_the_distance_of_half_precision_solutions_is_not_rounded() -> None:
    first, second = (jnp.array([x], jnp.bfloat16) for x in (1.0, 2.0**-9))
    line = flatness.loss_on_line(lambda params, batch: jnp.sum(params), first, second, [None])
    assert line.places[1] == 1 - 2.0**-9
