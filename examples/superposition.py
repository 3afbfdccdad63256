"""A phase transition, and how complex the network is before and after it.

    python examples/superposition.py

The toy model of superposition draws six features in a plane: x′ = ReLU(Wᵀ W x + b), where only one
feature of x is not zero. Training passes through regular polygons, one feature at each corner, and
the rest at the centre. From one to the next the loss falls at once, and the local learning
coefficient rises: the network becomes better and more complex. Elhage et al., "Toy models of
superposition", 2022; Chen et al., "Dynamical versus Bayesian phase transitions in a toy model of
superposition", 2023. A minute on a CPU core.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_sgd_jax import flatness

FEATURES, HIDDEN, BATCH_SIZE = 6, 2, 32
EVERY, POINTS = 100, 40  # SGD steps from one measurement to the next, and measurements
SEEDS = {"stays a square": 7, "from square to pentagon": 38, "to a hexagon": 25}
INVERSE_TEMPERATURE = 1000 / np.log(1000)  # nβ of 1,000 examples
SCOPE = 10.0

sizes = (np.arange(32) + 0.5) / 32  # of the feature: all inputs, so that the loss has no noise
INPUTS = jnp.asarray(np.concatenate([size * np.eye(FEATURES) for size in sizes]), jnp.float32)


def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Squared distance of x′ from x, in the mean over the inputs."""
    output = jax.nn.relu(x @ params["W"].T @ params["W"] + params["b"])
    return ((x - output) ** 2).sum(axis=-1).mean()


def draw(key: jax.Array) -> jax.Array:
    """A batch: one feature each, of a size between 0 and 1."""
    which, size = jax.random.split(key)
    feature = jax.random.randint(which, (BATCH_SIZE,), 0, FEATURES)
    return jax.nn.one_hot(feature, FEATURES) * jax.random.uniform(size, (BATCH_SIZE, 1))


def train(seed: jax.Array) -> dict[str, jax.Array]:
    """The parameters at all measurements, from a start near zero."""
    key = jax.random.key(seed)
    params = {
        "W": 0.001 * jax.random.normal(key, (HIDDEN, FEATURES)),
        "b": jnp.zeros(FEATURES),
    }
    optimizer = optax.sgd(0.05)

    def step(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        gradient = jax.grad(loss)(params, draw(jax.random.fold_in(key, number)))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def stretch(carry: tuple, number: jax.Array) -> tuple[tuple, dict]:
        carry, _ = jax.lax.scan(step, carry, number * EVERY + jnp.arange(EVERY))
        return carry, carry[0]

    return jax.lax.scan(stretch, (params, optimizer.init(params)), jnp.arange(POINTS))[1]


@jax.jit
def measure(params: dict[str, jax.Array]) -> tuple[jax.Array, flatness.LearningCoefficient]:
    """Loss and λ̂ at one point of training."""
    estimate = flatness.local_learning_coefficient(
        loss, params, INPUTS[None], inverse_temperature=INVERSE_TEMPERATURE, scope=SCOPE
    )
    return loss(params, INPUTS), estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="superposition.png", help="the figure")
    out = parser.parse_args().out
    steps = EVERY * np.arange(1, POINTS + 1)
    losses, courses, ends = {}, {}, {}
    for name, seed in SEEDS.items():
        path = jax.jit(train)(seed)
        at = [jax.tree.map(lambda leaf, i=i: leaf[i], path) for i in range(POINTS)]
        heights, estimates = zip(*map(measure, at), strict=True)
        losses[name] = steps, heights
        minima = [e.value > -3 * e.standard_error for e in estimates]  # saddles have no λ̂
        courses[name] = steps[minima], [e for e, own in zip(estimates, minima, strict=True) if own]
        ends[name] = np.asarray(at[-1]["W"])
        end = estimates[-1]
        print(f"{name:24} loss {heights[-1]:.4f}, λ̂ {end.value:.2f} ± {end.standard_error:.2f}")
    figure = flatness.plots.learning_coefficients(
        courses, losses=losses, xlabel="SGD step", title="Superposition: six features in a plane"
    )
    draw_polygons(figure.axes[0], ends)
    figure.savefig(out, dpi=150)
    print(out)


def draw_polygons(axes, ends: dict[str, np.ndarray]) -> None:
    """Where the features lie in the plane at the end, each run in its own colour."""
    for place, (line, columns) in enumerate(zip(axes.lines, ends.values(), strict=True)):
        inset = axes.inset_axes((0.28 + 0.24 * place, 0.36, 0.22, 0.32))
        for x, y in columns.T:
            inset.plot([0, x], [0, y], "o-", color=line.get_color(), ms=3, lw=1)
        inset.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])


if __name__ == "__main__":
    main()
