"""Draws why Entropy-SGD: SGD stops in a sharp valley, Entropy-SGD finds the wide one.

    python examples/double_well.py --out double_well.png

Both take the same number of gradients, in seconds. Units are those of the loss at temperature 1.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from entropy_sgd_jax import entropy_sgd, scoping

SHARP, WIDE = 1.1, -1.1  # centres of the valleys
STARTS = np.linspace(0.9, 2.6, 10)  # all of them in the sharp valley's basin
UPDATES, INNER_STEPS = 300, 200
STEP_SIZE = 0.005  # of SGD and of the Langevin steps: small enough to settle in either valley
FIRST_SCOPE, GROWTH_RATE = 0.5, 0.018


def loss(x: jax.Array) -> jax.Array:
    """A bowl with two valleys in it: the sharp one is the deeper one."""
    wide = 2.5 * jnp.exp(-0.5 * ((x - WIDE) / 0.8) ** 2)
    sharp = 2.8 * jnp.exp(-0.5 * ((x - SHARP) / 0.1) ** 2)
    return 0.25 * x**2 - wide - sharp


def negative_local_entropy(x: jax.Array, scope: jax.Array) -> jax.Array:
    """−log ∫ exp(−f(x′)) N(x′; x, 1/γ) dx′ by quadrature: −F and a constant; f as γ grows."""
    nodes = jnp.linspace(-8, 8, 3201)
    log_weights = -0.5 * scope * (nodes - x[:, None]) ** 2
    log_integral = jax.nn.logsumexp(log_weights - loss(nodes), axis=1)
    return jax.nn.logsumexp(log_weights, axis=1) - log_integral


@jax.jit
def run_sgd(starts: jax.Array) -> jax.Array:
    """x after every gradient, and before the first; shape (gradients + 1, starts)."""

    def step(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        x -= STEP_SIZE * jax.vmap(jax.grad(loss))(x)
        return x, x

    gradients = UPDATES * INNER_STEPS
    return jnp.concatenate([starts[None], jax.lax.scan(step, starts, length=gradients)[1]])


@jax.jit
def run_entropy_sgd(starts: jax.Array) -> jax.Array:
    """x after every update, and before the first; shape (UPDATES + 1, starts)."""

    def path(start: jax.Array, seed: jax.Array) -> jax.Array:
        optimizer = entropy_sgd(
            optax.cosine_decay_schedule(0.15, UPDATES),
            inner_momentum=None,
            inner_steps=INNER_STEPS,
            inner_learning_rate=STEP_SIZE,
            scope=scoping(FIRST_SCOPE, GROWTH_RATE),
            noise_scale=2**0.5,  # temperature 1
            averaging=0.02,
            key=seed,
        )

        def update(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
            x, state = carry
            updates, state = optimizer.update(
                None, state, x, grad_fn=lambda x, step: jax.grad(loss)(x)
            )
            return (x + updates, state), x + updates

        begin = start, optimizer.init(start)
        return jnp.append(start, jax.lax.scan(update, begin, length=UPDATES)[1])

    return jax.vmap(path, out_axes=1)(starts, jnp.arange(len(starts)))


SGD_COLOUR, ENTROPY_COLOUR, INK = "#d55e00", "#0072b2", "#222222"
SCOPES = {30: "#2f7fbc", 5: "#6baed6", 1: "#a6cee3"}  # and their colours


def draw_valleys(axes: plt.Axes, sgd: np.ndarray, entropic: np.ndarray) -> None:
    """The loss, what Entropy-SGD descends instead, the starting points and the ends."""
    x = jnp.linspace(-2.9, 2.9, 1161)
    axes.plot(x, loss(x), color=INK, lw=2.5, label="loss f")
    for scope, colour in SCOPES.items():
        label = f"−F at scope γ = {scope}"
        axes.plot(x, negative_local_entropy(x, scope), color=colour, lw=2, label=label)
    dots = {"ls": "", "marker": "o", "mec": "white", "ms": 9, "zorder": 3}
    axes.plot(STARTS, loss(STARTS), color="white", **dots | {"mec": INK, "ms": 6})
    axes.text(1.95, 1.25, "10 starts", color=INK, ha="right")
    text = {"ha": "center", "va": "top", "fontsize": 11, "fontweight": "bold"}
    for name, ends, valley, height, colour in (
        ("SGD", sgd[-1], SHARP, -2.7, SGD_COLOUR),
        ("Entropy-SGD", entropic[-1], WIDE, -2.4, ENTROPY_COLOUR),
    ):
        axes.plot(ends, loss(ends), color=colour, **dots)
        here = np.sum(np.abs(ends - valley) < 0.5)
        axes.text(valley, height, f"{name}: {here} of 10 end here", color=colour, **text)
    axes.set_title("The loss, and what Entropy-SGD descends in its place", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="upper center", labelcolor=INK, bbox_to_anchor=(0.47, 1))
    axes.set(ylim=(-3.1, 2.2), yticks=[-2, -1, 0, 1, 2], ylabel="f, and negative local entropy −F")


def draw_paths(axes: plt.Axes, sgd: np.ndarray, entropic: np.ndarray) -> None:
    """x against the gradients spent, over the landscape that Entropy-SGD sees at that moment."""
    x, updates = jnp.linspace(-2.9, 2.9, 291), np.arange(0, UPDATES + 1, 3)
    scope = scoping(FIRST_SCOPE, GROWTH_RATE)
    landscape = jax.lax.map(lambda t: negative_local_entropy(x, scope(t)), updates)
    axes.contourf(x, INNER_STEPS * updates, landscape, levels=24, cmap="Greys_r", vmin=-6)
    axes.plot(entropic, range(0, len(sgd), INNER_STEPS), color=ENTROPY_COLOUR, lw=1, alpha=0.8)
    axes.plot(sgd, range(len(sgd)), color=SGD_COLOUR, lw=1.5)
    axes.set_title("Paths over −F at the scope on the right (dark: low)", loc="left", fontsize=10)
    axes.set_yscale("function", functions=(np.sqrt, np.square))
    axes.set(xlabel="x", ylabel="gradient evaluations", ylim=(len(sgd) - 1, 0))
    axes.set_yticks([0, 1000, 5000, 10_000, 20_000, 40_000, 60_000])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    scopes = np.array([0.5, 1, 5, 30, 100])
    right = axes.secondary_yaxis("right")
    at_gradient = INNER_STEPS * np.log(scopes / FIRST_SCOPE) / np.log1p(GROWTH_RATE)
    right.set_yticks(at_gradient, [f"{scope:g}" for scope in scopes])
    right.set_ylabel("scope γ of Entropy-SGD")
    right.spines[:].set_visible(False)
    right.tick_params(length=0)


def draw(sgd: np.ndarray, entropic: np.ndarray) -> plt.Figure:
    """The valleys above, the way down below, over one axis of x."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6.4, 7.2), sharex=True, height_ratios=(5, 4), layout="constrained"
    )
    title = "SGD stops in the sharp valley, Entropy-SGD finds the wide one"
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK)
    draw_valleys(top, sgd, entropic)
    draw_paths(bottom, sgd, entropic)
    for axes in (top, bottom):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="double_well.png", help="the figure")
    out, starts = parser.parse_args().out, jnp.asarray(STARTS, jnp.float32)
    draw(np.asarray(run_sgd(starts)), np.asarray(run_entropy_sgd(starts))).savefig(out, dpi=200)
    print(out)
