"""What the paper says of its settings, one at a time: annealing η′, kinds of scoping, α.

    python -m experiments.studies.claims

Trains Entropy-SGD on scikit-learn's digits as `examples/digits.py` does, 20 seeds of each variant,
and compares test errors seed by seed. Minutes on a CPU core. The table goes to `claims.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import track

from entropy_sgd_jax import entropy_sgd
from experiments.data.images import load_digits
from experiments.harness import contestants, report
from experiments.harness.settings import Settings, positive
from experiments.harness.training import Budget, Contestant, Measurement
from experiments.io import files
from experiments.studies import RESULTS, paired
from experiments.studies.solutions import train_to_the_end
from experiments.workloads import digits

NAME = "Entropy-SGD"
USUAL = "η constant, η′ cosine"  # γ 0.3, α 0.75
LOW, HIGH = 0.03, 3.0  # γ at the start and at the end, where it grows


def scopes(rounds: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Ways from the one to the other over this many updates."""

    def rising(shape: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda count: LOW + (HIGH - LOW) * shape(count / rounds)

    return {
        "geometric": lambda count: LOW * (HIGH / LOW) ** (count / rounds),
        "linear": rising(lambda part: part),
        "quadratic": rising(jnp.square),
        "bounded": rising(lambda part: 1 - jnp.exp(-5 * part)),
    }


def variants(budget: Budget) -> dict[str, dict[str, Any]]:
    """What each changes: settings, or arguments of `entropy_sgd`."""
    rates = {
        f"η {outer}, η′ {inner}": {"schedule": outer, "inner_schedule": inner}
        for outer in ("constant", "cosine")
        for inner in ("constant", "cosine")
    }
    weights = {f"α = {weight:g}": {"averaging": weight} for weight in (0.1, 0.25, 1.0)}
    grown = {f"γ {kind}": {"scope": scope} for kind, scope in scopes(budget.rounds).items()}
    return {**rates, **grown, **weights}


def contestant(changed: dict[str, Any], budget: Budget) -> Contestant:
    own, fixed = digits.SETTINGS["digits"].arguments[NAME], digits.OPTIMIZERS[NAME][1]
    settings = Settings(inner_steps=budget.inner_steps, **fixed, **own)
    scope = changed.get("scope")  # no setting is a function
    settings = dataclasses.replace(settings, **({} if scope else changed))
    inner = contestants.inner_arguments(settings, budget.gradient_evaluations)
    rate = contestants.schedule(settings, budget.rounds)
    optimizer = entropy_sgd(
        rate, settings.momentum or None, **inner | ({"scope": scope} if scope else {})
    )
    return Contestant(optimizer, contestants.entropy_round)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=positive, default=20, help="of each variant (default 20)")
    options = parser.parse_args()
    dataset = load_digits()
    budget, model = digits.prepare("digits", dataset)
    budget = budget._replace(measurements=1)
    train = functools.partial(train_to_the_end, model=model, dataset=dataset, budget=budget)
    ends: dict[str, Measurement] = {}
    for name, changed in track(variants(budget).items(), "training"):
        ends[name] = train(contestant(changed, budget), seeds=options.seeds)[1]
    usual = ends[USUAL].test_error
    rows = []
    for name, end in ends.items():
        less = paired.difference(end.test_error, usual, ".2f") if name != USUAL else ""
        error = report.mean_and_spread(end.test_error, ".2f")
        rows.append([name, error, less, f"{end.train_loss.mean():.1e}"])
    text = report.markdown(["variant", "test error, %", "less the usual", "training loss"], rows)
    files.write_whole(RESULTS / "claims.md", text)
    print(text)


if __name__ == "__main__":
    main()
