"""A character GPT in 4 and 8 replicas averaged every 20 gradients, against data-parallel AdamW.

    python -m experiments.studies.diloco_gpt --text shakespeare.txt
    python -m experiments.studies.diloco_gpt --text shakespeare.txt --tune

The first trains all three at the same number of gradient evaluations on the same batches, prints a
table and draws the loss against gradient evaluations and against bytes communicated. The second
prints the table from which SETTINGS was chosen. Replicas are a `vmap` here, so that one machine
will do; on devices of their own the same step stands under `shard_map`.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from experiments.io.errors import InputError, OneLineParser, one_line_errors

with one_line_errors("diloco_gpt.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from entropy_sgd_jax import diloco
    from experiments.data.text import Text, load_characters
    from experiments.harness.report import figure_path, mean_and_spread, standard_error
    from experiments.harness.settings import positive
    from experiments.workloads.char_gpt import Network

LENGTH, WIDTH, LAYERS = 64, 96, 3  # symbols seen, width and number of blocks
BATCH = 32  # windows in each gradient of all replicas together
INNER_STEPS = 20  # L
ROUNDS_BETWEEN = 5  # rounds of L gradients from one measurement to the next
VALIDATION = 50_000  # symbols, at the most, to judge by while tuning


class Way(NamedTuple):
    """A number of replicas, and how they train."""

    replicas: int
    learning_rate: float  # the peak of AdamW's, alone or inside
    momentum: float | None  # of the outer Nesterov steps; None for AdamW alone


# The best by --tune on Tiny Shakespeare, of four settings for each.
SETTINGS = {
    "data-parallel AdamW": Way(1, 4e-3, None),
    "DiLoCo, 4 replicas": Way(4, 4e-3, 0.5),
    "DiLoCo, 8 replicas": Way(8, 8e-3, 0.5),
}
CANDIDATES = {
    "data-parallel AdamW": [Way(1, rate, None) for rate in (2e-3, 4e-3, 8e-3, 16e-3)],
    **{
        f"DiLoCo, {replicas} replicas": [
            Way(replicas, rate, momentum) for rate in (4e-3, 8e-3) for momentum in (0.5, 0.9)
        ]
        for replicas in (4, 8)
    },
}


class Curve(NamedTuple):
    """The curve of one run."""

    gradient_evaluations: list[int]  # on the whole batch
    gigabytes: list[float]  # all-reduced by each device
    loss: list[float]  # nats per character, on text that was not trained on
    seconds: float


def make_network(symbols: int) -> Callable[[nnx.Rngs], Network]:
    return lambda rngs: Network(symbols, LENGTH, WIDTH, LAYERS, 0.0, rngs)


def make_loss(symbols: int) -> Callable[[Any, jax.Array], jax.Array]:
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_network(symbols)(nnx.Rngs(0))))

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        """Mean cross-entropy in nats; windows have one symbol more than the network sees."""
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    return loss


def make_optimizer(way: Way, steps: int) -> optax.GradientTransformationExtraArgs:
    rate = optax.warmup_cosine_decay_schedule(0, way.learning_rate, steps // 20, steps)
    if way.momentum is None:
        return optax.adamw(rate)
    return diloco(
        momentum=way.momentum,
        replica_axis_name="replica",
        inner_steps=INNER_STEPS,
        inner_learning_rate=rate,
    )


def one_round(way: Way, tx: Any, loss: Any, params: Any, state: Any, batches: Any) -> Any:
    """L gradients of one replica, on batches of shape (L, batch, symbols)."""
    grad_fn = jax.grad(loss)
    if way.momentum is not None:
        updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
        return optax.apply_updates(params, updates), state

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grad_fn(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


def train(way: Way, text: Text, steps: int, seed: int) -> Iterator[tuple[int, float]]:
    """Yields (gradient evaluations, loss) once in a while; all ways see the same batches."""
    loss, tx = make_loss(text.symbols), make_optimizer(way, steps)
    key, symbols = jax.random.key(seed), jax.device_put(text.train)
    params = nnx.state(make_network(text.symbols)(nnx.Rngs(seed)), nnx.Param)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * way.replicas), params)
    state = jax.vmap(tx.init)(params)
    replica_round = jax.vmap(functools.partial(one_round, way, tx, loss), axis_name="replica")

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def rounds(params: Any, state: Any, first: jax.Array) -> Any:
        def body(index: jax.Array, carry: Any) -> Any:
            shape = (INNER_STEPS, BATCH, 1)
            starts = jax.random.randint(
                jax.random.fold_in(key, first + index), shape, 0, len(symbols) - LENGTH
            )
            windows = symbols[starts + jnp.arange(LENGTH + 1)]
            windows = windows.reshape(INNER_STEPS, way.replicas, -1, LENGTH + 1)
            return replica_round(*carry, windows.swapaxes(0, 1))

        return jax.lax.fori_loop(0, ROUNDS_BETWEEN, body, (params, state))

    rest = len(text.test) // (LENGTH + 1)
    if not rest:
        raise InputError(f"--text has {len(text.test)} characters to test on, too few for a window")
    judged = jnp.asarray(text.test[: rest * (LENGTH + 1)]).reshape(rest, -1)
    judge = jax.jit(lambda params: loss(jax.tree.map(lambda leaf: leaf[0], params), judged))
    for first in range(0, steps // INNER_STEPS, ROUNDS_BETWEEN):
        params, state = rounds(params, state, jnp.int32(first))
        yield (first + ROUNDS_BETWEEN) * INNER_STEPS, float(judge(params))


def run(name: str, way: Way, text: Text, steps: int, seed: int, console: Console) -> Curve:
    began = time.perf_counter()
    measurements = steps // (INNER_STEPS * ROUNDS_BETWEEN)
    points = list(track(train(way, text, steps, seed), name, total=measurements, console=console))
    seconds = time.perf_counter() - began
    parameters = sum(
        leaf.size
        for leaf in jax.tree.leaves(
            nnx.eval_shape(lambda: nnx.state(make_network(text.symbols)(nnx.Rngs(0)), nnx.Param))
        )
    )
    meetings = 1 if way.momentum is None else INNER_STEPS  # gradients from one to the next
    return Curve(
        [evaluations for evaluations, _ in points],
        [4e-9 * parameters * evaluations / meetings for evaluations, _ in points],
        [loss for _, loss in points],
        seconds,
    )


def draw(curves: dict[str, list[Curve]], path: pathlib.Path) -> None:
    """Mean over the seeds, with its standard error; an arrow for what the fewest bytes save."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, runs in curves.items():
        losses = np.array([curve.loss for curve in runs])
        mean, error = losses.mean(axis=0), standard_error(losses.T)
        for axes, x in ((left, runs[0].gradient_evaluations), (right, runs[0].gigabytes)):
            (line,) = axes.plot(x, mean, label=name, marker="o", ms=3)
            axes.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.15)
    left.set(xlabel="gradient evaluations on the whole batch", ylabel="test loss, nats / character")
    left.set_title("for each gradient: down is better", loc="left", fontsize=11)
    right.set(xlabel="gigabytes all-reduced by each device", xscale="log")
    right.set_title("for each byte: left and down is better", loc="left", fontsize=11)
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    draw_saving(right, *list(curves.values())[:2])
    figure.savefig(path, dpi=120)


def draw_saving(axes: Axes, costly: list[Curve], cheap: list[Curve]) -> None:
    """An arrow between the bytes at which both ways reach one loss, if they do."""
    (loss, few), (others, many) = (
        (np.mean([curve.loss for curve in runs], axis=0), np.array(runs[0].gigabytes))
        for runs in (cheap, costly)
    )
    level = max(loss.min(), others.min())
    start, end = (
        np.interp(-level, -values, sizes) for values, sizes in ((others, many), (loss, few))
    )
    if others[0] < level or loss[0] < level or start <= end:
        return
    axes.annotate("", (end, level), (start, level), arrowprops={"arrowstyle": "->"})
    middle = math.sqrt(start * end)
    axes.text(middle, level, f"{start / end:.0f} × fewer bytes", ha="center", va="bottom")


def table(curves: dict[str, list[Curve]]) -> Table:
    shown = Table("", "test loss, nats / character", "gigabytes per device", "seconds")
    for name, runs in curves.items():
        last = np.array([curve.loss[-1] for curve in runs])
        shown.add_row(
            name,
            mean_and_spread(last, ".3f"),
            f"{runs[0].gigabytes[-1]:.3f}",
            f"{np.mean([curve.seconds for curve in runs]):.0f}",
        )
    return shown


def tune(text: Text, steps: int, console: Console) -> None:
    shown = Table("", "learning rate", "outer momentum", "validation loss")
    for name, ways in CANDIDATES.items():
        for way in ways:
            curve = run(f"{name} {way[1:]}", way, text, steps, 0, console)
            shown.add_row(
                name, f"{way.learning_rate:g}", str(way.momentum), f"{curve.loss[-1]:.3f}"
            )
    console.print(shown)


def main() -> None:
    parser = OneLineParser(prog="diloco_gpt.py", description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="any text file, plain or .gz")
    parser.add_argument(
        "--steps", type=positive, default=800, help="gradient evaluations, a multiple of 100"
    )
    parser.add_argument("--seeds", type=positive, default=1)
    parser.add_argument("--out", default="diloco_gpt.png", help="the figure")
    parser.add_argument("--tune", action="store_true", help="try the settings on validation text")
    options = parser.parse_args()
    console, between = Console(), INNER_STEPS * ROUNDS_BETWEEN
    if options.steps < between or options.steps % between:
        raise InputError(f"--steps {options.steps} given, a multiple of {between} expected")
    if options.tune:
        tune(load_characters(None, options.text, VALIDATION), options.steps, console)
        return
    figure = figure_path(options.out)
    text = load_characters(None, options.text)
    curves = {
        name: [run(name, way, text, options.steps, seed, console) for seed in range(options.seeds)]
        for name, way in SETTINGS.items()
    }
    console.print(table(curves))
    draw(curves, figure)
    record = {name: [curve._asdict() for curve in runs] for name, runs in curves.items()}
    figure.with_suffix(".json").write_text(json.dumps(record))


if __name__ == "__main__":
    with one_line_errors("diloco_gpt.py"):
        main()
