"""Islands: workers that are no single JAX program, train by themselves, die and come back.

    python examples/islands.py
    python examples/islands.py --kill 3:0 --slow 5:1 --join 7     with mishaps, to watch
    RAY_ADDRESS=auto python examples/islands.py                   on the nodes of a Ray cluster

Each island is a process with a JAX of its own. It takes L gradients from the common x, sends x − x′
as integers, and keeps its Adam state. This program, the coordinator, averages by tokens what comes
before a deadline, takes the outer step and saves it. Kill it, and the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from experiments.io.errors import OneLineParser, one_line_errors

CLUSTER = "RAY_ADDRESS" in os.environ
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not CLUSTER:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # all traffic over 127.0.0.1
with one_line_errors("islands.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import ray
    from rich.console import Console

    from entropy_sgd_jax import diloco, entropic_diagnostics
    from experiments.checkpoints import Checkpoints
    from experiments.harness.settings import positive
    from experiments.islands import mishaps
    from experiments.islands.characters import draw, initial_params, loss, read_text
    from experiments.islands.rounds import Answer, Islands
    from experiments.islands.wire import Sender, receive, weighted_mean

INNER_STEPS, BATCH, BITS = 50, 64, 8


@ray.remote(num_cpus=1, max_restarts=-1, scheduling_strategy="SPREAD")
class Island:
    """Trains where the coordinator cannot see it."""

    def __init__(self, number: int, slow_round: int, slow_seconds: float) -> None:
        self.number, self.slow_round, self.slow_seconds = number, slow_round, slow_seconds
        self.text = read_text()[0]
        self.batch = BATCH * (1 + number % 2)  # islands differ in size
        # With an outer step of 1 and no momentum, the update is x′ − x.
        adamw = optax.adamw(4e-3)
        tx = diloco(1.0, None, inner_steps=INNER_STEPS, inner_optimizer=adamw, diagnostics=True)
        self.state, self.sender = tx.init(initial_params()), Sender(BITS)
        both = jax.value_and_grad(loss)

        def train(params: Any, state: Any, batches: jax.Array) -> Any:
            refused = entropic_diagnostics(state).refused_updates
            updates, state = tx.update(None, state, params, value_and_grad_fn=both, batches=batches)
            found = entropic_diagnostics(state)
            # A round that does not count moved nothing: it must not vote for standing still.
            its_loss = jnp.where(found.refused_updates > refused, jnp.nan, found.inner_loss)
            return jax.tree.map(jnp.negative, updates), state, its_loss

        self.step = jax.jit(train)

    def train(self, round_number: int, x: Any) -> Answer:
        """L gradients from x; the Adam state stays here."""
        if round_number == self.slow_round:
            time.sleep(self.slow_seconds)
        batches = draw(self.text, [self.number, round_number], (INNER_STEPS, self.batch))
        moved, self.state, mean_loss = self.step(x, self.state, batches)
        message, tokens = self.sender.send(moved), INNER_STEPS * self.batch
        return Answer(message, tokens, float(mean_loss))

    def process(self) -> int:
        """The number of its process, which changes when Ray starts it again."""
        return os.getpid()


def coordinate(options: argparse.Namespace, console: Console, checkpoints: Checkpoints) -> None:
    outer = optax.sgd(0.7, momentum=0.5, nesterov=True)
    x = initial_params()
    done, (x, state) = checkpoints.restore((x, outer.init(x))) or (0, (x, outer.init(x)))
    judge, judged = jax.jit(loss), draw(read_text()[1], [0], (4000,))

    def start(number: int) -> Any:
        slow = options.slow[0] if number == options.slow[1] else -1
        return Island.remote(number, slow, options.deadline + 2)

    if done >= options.rounds:
        console.print(f"all {done} rounds are done: more --rounds, or other --checkpoints")
        return
    islands = Islands(start)
    for number in range(done + 1, options.rounds + 1):
        while len(islands) < mishaps.islands_in(number, options):
            islands.join()
        began, asked = time.monotonic(), islands.ask(number, jax.device_get(x))
        if number == options.kill[0]:
            islands.kill(options.kill[1])  # in the middle of its round
        arrived: dict[int, Answer] = {}
        with console.status(
            f"round {number}: {len(asked)} of {len(islands)} islands at work"
        ) as at:
            for island, answer in islands.answers(options.deadline):
                if answer is not None and np.isfinite(answer.loss):
                    arrived[island] = answer
                at.update(f"round {number}: {len(arrived)} of {len(islands)} islands are done")
        messages = [answer.pseudo_gradient for answer in arrived.values()]
        tokens = [answer.tokens for answer in arrived.values()]
        if messages:
            mean = weighted_mean([receive(message, x) for message in messages], tokens)
            updates, state = outer.update(mean, state, x)
            x = optax.apply_updates(x, updates)
        else:
            time.sleep(1)  # all have died: Ray is starting them again
        checkpoints.save(number, (x, state))
        sent = sum(message.nbytes for message in messages) / 1e6
        fetched = len(asked) * sum(leaf.nbytes for leaf in jax.tree.leaves(x)) / 1e6
        console.print(
            f"round {number}: islands {sorted(arrived)} of {len(islands)}, {sum(tokens):,} tokens, "
            f"test loss {judge(x, judged):.3f}, {sent:.2f} MB to here, {fetched:.2f} MB back, "
            f"{time.monotonic() - began:.1f} s", highlight=False, soft_wrap=True,
        )  # fmt: skip


def main() -> None:
    parser = OneLineParser(prog="islands.py", description=__doc__.splitlines()[0])
    parser.add_argument("--islands", type=positive, default=3, help="at the start (default 3)")
    parser.add_argument("--rounds", type=positive, default=10, help="outer steps (default 10)")
    parser.add_argument("--deadline", type=float, default=10, help="seconds after the first answer")
    parser.add_argument("--checkpoints", metavar="DIR", default="islands_run", help="to go on from")
    mishaps.add_flags(parser)
    options = parser.parse_args()
    mishaps.check(options, CLUSTER)
    here = {"num_cpus": options.islands + 1, "include_dashboard": False}
    ray.init(logging_level="ERROR", log_to_driver=False, **({} if CLUSTER else here))
    settings = {"inner_steps": INNER_STEPS, "batch": BATCH, "bits": BITS}
    with Checkpoints(options.checkpoints, settings) as checkpoints:
        coordinate(options, Console(), checkpoints)


if __name__ == "__main__":
    with one_line_errors("islands.py"):
        main()
