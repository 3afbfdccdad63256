"""The angle between the slope of local entropy and that of the loss, as training goes on.

    python -m experiments.studies.angles --data-dir DIR

Trains each network as the paper's authors did, for fewer epochs. At each measurement, `--updates`
updates start from the same x, each with mini-batches of its own. From products between different
ones comes the angle between the expectations of x − μ and ∇f(x), without the noise of either; then
how far from ∇f(x) a single update is, and the mean of as many gradients at x. DIR has the folders
`mnist/` and `text/`. The table goes to `angles.json`, a figure to `angles.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from experiments.io.errors import InputError, OneLineParser, one_line_errors

with one_line_errors("angles.py"):
    import jax
    import jax.numpy as jnp
    import optax
    from jax import lax
    from matplotlib.figure import Figure

    from entropy_sgd_jax import entropy_sgd
    from experiments import train
    from experiments.harness import contestants, report, training
    from experiments.harness.logs import versions
    from experiments.harness.settings import one_of, positive
    from experiments.io import files
    from experiments.studies import RESULTS, solutions, tune

# Optimizer, effective epochs, and the name in the figure.
TASKS = {
    "mnistfc": ("entropy_sgd", 20, "MNIST, fully connected"),
    "lenet": ("entropy_sgd", 10, "MNIST, LeNet"),
    "char_lstm": ("entropy_adam", 5, "War and Peace, LSTM"),
}
MEASUREMENTS = 8
NAMES = ("E(x − μ)", "x − μ of one update", "mean of L gradients")  # each to ∇f(x)
STYLES = ("-", ":", "--")


def dots(ones: Any, others: Any) -> tuple[jax.Array, jax.Array]:
    """Means of ⟨one_k, other_l⟩ over all k ≠ l, and over k = l; trees with k as leading axis."""
    pairs = list(zip(*map(jax.tree.leaves, (ones, others)), strict=True))
    count = len(pairs[0][0])
    own = sum(jnp.vdot(one, other) for one, other in pairs)
    every = sum(jnp.vdot(one.sum(0), other.sum(0)) for one, other in pairs)
    return (every - own) / (count * (count - 1)), own / count


def angles(slopes: Any, grads: Any) -> dict[str, jax.Array]:
    """From x − μ and ∇f(x) of several updates, each with that leading axis; by NAMES, in degrees.

    No product is of two things from the same mini-batches, so that their common noise has no part
    in it. Not a number where too few updates leave a squared norm below zero.
    """
    (across, _), (slope, one_slope), (grad, one_grad) = (
        dots(*pair) for pair in ((slopes, grads), (slopes, slopes), (grads, grads))
    )
    lengths = jnp.sqrt(jnp.stack([slope * grad, one_slope * grad, one_grad * grad]))
    cosines = jnp.stack([across, across, grad]) / lengths
    return dict(zip(NAMES, jnp.degrees(jnp.arccos(jnp.clip(cosines, -1, 1))), strict=True))


def probe(run: train.Run) -> Callable[..., dict[str, jax.Array]]:
    """A function of a state of training at x, and of rows and masks of shape (updates, L, ...)."""
    streams = run.model.carry is not None and run.settings.sampling == "streams"
    loss = run.model.carried_loss if streams else run.model.loss
    grad_fn = jax.grad(loss, has_aux=streams)
    inner = contestants.inner_arguments(run.settings, run.budget.gradient_evaluations)

    take_round = contestants.entropy_round
    if streams:
        take_round = functools.partial(contestants.carried_round, sam=False)

    @jax.jit
    def look(trained: Any, rows: Any, masks: Any, scope: Any, key: Any, data: Any) -> Any:
        params, _, *carry = trained
        # Its update is μ − x. γ stays at what it has grown to.
        optimizer = entropy_sgd(1.0, **inner | {"scope": lambda _: scope})

        def update(carry: list[Any], part: Any) -> Any:
            """One from x; and the gradients at x, after which the network's state is the next."""
            key, rows, masks = part
            batches = data.train_inputs[rows], data.train_labels[rows], masks
            batches += (rows[:, 0] == 0,) if streams else ()
            state = optax.tree.set(optimizer.init(params), rng_key=key)
            end, *_ = take_round(optimizer, grad_fn, params, state, batches, *carry)

            def at_x(carry: list[Any], batch: Any) -> Any:
                if not streams:
                    return carry, grad_fn(params, batch)
                grads, after = grad_fn(params, batch, *carry)
                return [after], grads

            carry, grads = lax.scan(at_x, carry, batches)
            mean = jax.tree.map(lambda leaves: leaves.mean(0), grads)
            return carry, (jax.tree.map(jnp.subtract, params, end), mean)

        keys = jax.random.split(key, len(rows))
        return angles(*lax.scan(update, carry, (keys, rows, masks))[1])

    return look


def measure(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one seed, and looks at each x on the mini-batches that would come next."""
    optimizer, epochs, _ = TASKS[task]
    folder = tune.data_folder(options.data_dir, task)
    flags = [task, "--optimizer", optimizer, "--data-dir", folder, "--as-published"]
    flags += ["--effective-epochs", str(epochs), "--measurements", str(MEASUREMENTS)]
    run = train.prepare(train.parse_arguments(flags))
    most = run.budget.segments[0]
    if not 2 <= options.updates <= most:
        raise InputError(f"--updates {options.updates}: allowed are 2 to {most} on {task}")
    states, look, data = solutions.EveryState(), probe(run), jax.device_put(run.dataset)
    _, *measurements = training.train(
        run.contestant, run.model, run.dataset, run.budget, 1, states, training.one_by_one
    )
    seed, rows = jax.random.key(0), []
    for index, (now, trained) in enumerate(zip(measurements, states.trained, strict=True), 1):
        order, masks = training.draw_segment(
            seed[None], index, run.budget, len(run.dataset.train_labels)
        )
        done = now.gradient_evaluations // run.settings.inner_steps
        found = look(
            jax.tree.map(lambda leaf: leaf[0], trained),
            order[0, : options.updates],
            masks[0, : options.updates],
            run.settings.scope * (1 + run.settings.scope_growth) ** done,
            jax.random.fold_in(seed, index),
            data,
        )
        score = round(float(report.SCORES[run.workload.score].of(now)[0]), 3)
        values = {name: round(float(found[name]), 2) for name in NAMES}
        rows.append({"gradients": now.gradient_evaluations, "score": score} | values)
    configuration = dataclasses.asdict(run.settings) | {"seeds": 1, "updates": options.updates}
    return {"configuration": configuration, "versions": versions(), "angles": rows}


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """One panel a task."""
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (task, measured) in zip(panels, found.items(), strict=True):
        places = [row["gradients"] for row in measured["angles"]]
        for name, style in zip(NAMES, STYLES, strict=True):
            values = [row[name] for row in measured["angles"]]
            axes.plot(places, values, style, marker=".", label=name)
        axes.set(title=TASKS[task][2], xlabel="gradient evaluations", ylim=(0, 95))
        axes.grid(alpha=0.25)
    figure.axes[0].set(ylabel="angle to ∇f(x), degrees")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = OneLineParser(prog="angles.py", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", type=one_of(tuple(TASKS)), help="default all")
    parser.add_argument("--data-dir", type=pathlib.Path, required=True)
    parser.add_argument("--updates", type=positive, default=20, help="from each x (default 20)")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "angles.json")
    options = parser.parse_args()
    found = files.kept(options.out, {})
    for task in options.tasks or TASKS:
        found[task] = measure(task, options)
        files.write_whole(options.out, json.dumps(found, indent=1) + "\n")
        rows = found[task]["angles"]
        print(task, report.markdown(rows[0], [map(str, row.values()) for row in rows]), sep="\n")
    draw({task: found[task] for task in TASKS if task in found}, options.out.with_suffix(".png"))


if __name__ == "__main__":
    with one_line_errors("angles.py"):
        main()
