"""The local learning coefficient here and in devinterp 1.x: one network, the same settings.

    python benchmarks/learning_coefficient.py                     # ours alone
    python benchmarks/learning_coefficient.py --peer PYTHON       # an interpreter with devinterp
    python benchmarks/learning_coefficient.py --peer PYTHON --speed

A network 64-64-10 is trained on the digits of scikit-learn; then chains of SGLD with the same step
size, temperature, localisation and batch size run in both, and a Metropolis-adjusted chain here.

With --speed, draws per second are compared, burn-in included, of networks of 50,890 and
1,068,810 parameters: in turn, each time in a new process without a compilation cache, the first
call and then warm ones. The peer is run twice: with PyTorch's usual loader, which fetches examples
one by one, and with one that hands out whole batches. It has one thread or all, whichever is faster
for it. Only ratios of one run on an idle machine mean anything.

devinterp 1.3.2 runs beside PyTorch on a CPU: `pip install torch numpy pandas matplotlib
cloudpickle tqdm`, then `pip install --no-deps devinterp==1.3.2`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BATCH, SCOPE, STEP_SIZE, CHAINS, STEPS = 128, 100.0, 1e-4, 8, 2000
SIZES = {"small": (784, 64, 10), "large": (784, 1024, 256, 10)}
SPEED_STEPS = {"small": 2000, "large": 100}  # of each chain
ROUNDS, WARM_CALLS = 3, 2


def initialise(widths: Sequence[int]) -> dict[str, np.ndarray]:
    """Weights w0, w1, … and biases b0, b1, …"""
    random, params = np.random.default_rng(0), {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        weights = random.normal(size=(inputs, outputs)) / inputs**0.5
        params |= {f"w{i}": weights.astype(np.float32), f"b{i}": np.zeros(outputs, np.float32)}
    return params


def loss(params: Any, batch: Any) -> Any:
    """Of the network with tanh between its layers."""
    import jax.numpy as jnp
    import optax

    outputs = batch[0]
    for i in range(len(params) // 2):
        outputs = (jnp.tanh(outputs) if i else outputs) @ params[f"w{i}"] + params[f"b{i}"]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


def train(file: pathlib.Path) -> None:
    """Leaves the data and a network trained on the digits in `file`."""
    import jax
    import optax
    from sklearn.datasets import load_digits

    digits = load_digits()
    count = len(digits.target) // BATCH * BATCH
    data = (digits.data[:count] / 16).astype(np.float32), digits.target[:count]
    adam = optax.adam(3e-3)

    @jax.jit
    def run(params: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = adam.update(jax.grad(loss)(params, data), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, adam.init(params)), length=1000)[0][0]

    params = run(initialise((64, 64, 10)))
    np.savez(file, images=data[0], labels=data[1], init_loss=loss(params, data), **params)


def invent(file: pathlib.Path, widths: Sequence[int]) -> None:
    """Leaves random data and a network as initialised: speed knows no difference."""
    random = np.random.default_rng(1)
    images = random.normal(size=(16 * BATCH, widths[0])).astype(np.float32)
    labels = random.integers(0, widths[-1], len(images))
    np.savez(file, images=images, labels=labels, init_loss=2.5, **initialise(widths))


def load(file: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The data and the parameters."""
    stored = dict(np.load(file))
    data = {name: stored.pop(name) for name in ("images", "labels", "init_loss")}
    return data, stored


def timed(call: Callable[[], Any], calls: int) -> tuple[Any, list[float]]:
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return result, seconds


def ours(file: pathlib.Path, method: str, step_size: float, steps: int, calls: int) -> Any:
    """Value, standard error and the seconds of each call, of which the first compiles."""
    import jax

    from entropy_sgd_jax import flatness

    data, params = load(file)
    pair = data["images"], data["labels"]
    sgld = method == "sgld"
    batches = jax.tree.map(
        lambda leaf: jax.numpy.asarray(
            leaf.reshape(-1, BATCH, *leaf.shape[1:]) if sgld else leaf[None]
        ),
        pair,
    )

    @jax.jit
    def measure(params: Any, batches: Any) -> Any:
        return flatness.local_learning_coefficient(
            loss, params, batches, scope=SCOPE, num_chains=CHAINS, num_steps=steps, method=method,
            step_size=step_size if sgld else None,
        )  # fmt: skip

    params = jax.block_until_ready(jax.device_put(params))
    result, seconds = timed(lambda: jax.block_until_ready(measure(params, batches)), calls)
    return {
        "value": float(result.value),
        "standard_error": float(result.standard_error),
        "step_bias_subtracted": float(result.step_bias),
        "seconds": seconds,
    }


def peer(file: pathlib.Path, usual: bool, step_size: float, steps: int, calls: int) -> Any:
    """The same by devinterp, with PyTorch's usual loader or with one of whole batches."""
    import warnings

    warnings.simplefilter("ignore")
    import torch
    from devinterp.optim.sgld import SGLD
    from devinterp.slt.sampler import estimate_learning_coeff_with_summary

    stored, params = load(file)
    layers: list[Any] = []
    for i in range(len(params) // 2):
        layer = torch.nn.Linear(*params[f"w{i}"].shape)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(params[f"w{i}"].T))
            layer.bias.copy_(torch.tensor(params[f"b{i}"]))
        layers += [torch.nn.Tanh()] * bool(i) + [layer]
    model = torch.nn.Sequential(*layers)
    images, labels = torch.tensor(stored["images"]), torch.tensor(stored["labels"]).long()

    class Loader(torch.utils.data.DataLoader):
        """Shuffled, whole batches at a time."""

        def __iter__(self) -> Any:
            order = torch.randperm(len(images)).reshape(-1, BATCH)
            return iter([(images[rows], labels[rows]) for rows in order])

    dataset = torch.utils.data.TensorDataset(images, labels)
    kind = torch.utils.data.DataLoader if usual else Loader
    loader = kind(dataset, batch_size=BATCH, shuffle=True)

    def evaluate(model: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def measure(steps: int = steps, chains: int = CHAINS) -> Any:
        nbeta = len(images) / np.log(len(images))
        return estimate_learning_coeff_with_summary(
            model,
            loader,
            evaluate=evaluate,
            sampling_method=SGLD,
            optimizer_kwargs={"lr": step_size, "localization": SCOPE, "nbeta": nbeta},
            num_draws=steps // 2,
            num_chains=chains,
            num_burnin_steps=steps // 2,
            init_loss=float(stored["init_loss"]),
            seed=0,
            verbose=False,
        )

    def trial(threads: int) -> float:
        torch.set_num_threads(threads)
        return min(timed(lambda: measure(40, 1), 3)[1])

    torch.set_num_threads(min((1, os.cpu_count() or 1), key=trial))
    result, seconds = timed(measure, calls)
    return {
        "value": float(result["llc/mean"]),
        "standard_error": float(result["llc/std"]) / CHAINS**0.5,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }


def run(python: str, program: str, file: pathlib.Path, *settings: float) -> Any:
    """`ours` or `peer` in a process of its own."""
    command = [python, __file__, "--run", program, str(file), *map(repr, settings)]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare_values(programs: dict[str, str], file: pathlib.Path) -> None:
    train(file)
    for program, python in programs.items():
        found = run(python, program, file, STEP_SIZE, STEPS, 1)
        per_second = STEPS * CHAINS / found["seconds"][0]
        print(json.dumps({"program": program, **found, "gradients_per_second": per_second}))


def compare_speed(programs: dict[str, str], file: pathlib.Path, wanted: int | None) -> None:
    for size, widths in SIZES.items():
        invent(file, widths)
        steps = wanted or SPEED_STEPS[size]
        seconds: dict[str, list[list[float]]] = {program: [] for program in programs}
        for _ in range(ROUNDS):
            for program, python in programs.items():
                found = run(python, program, file, 1e-7, steps, 1 + WARM_CALLS)
                seconds[program].append([found["seconds"][0], min(found["seconds"][1:])])
        for column, call in enumerate(("first call", "warm")):
            rows = {program: [row[column] for row in seconds[program]] for program in programs}
            line: dict[str, Any] = {"network": size, "call": call, "chains": CHAINS, "steps": steps}
            for program, row in rows.items():
                line[program] = round(CHAINS * steps / min(row), 1)
            for program in (*programs,)[1:]:
                pairs = zip(rows[program], rows["sgld"], strict=True)
                ratio = statistics.median(theirs / own for theirs, own in pairs)
                line[f"sgld / {program}"] = round(ratio, 2)
            print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with devinterp 1.x")
    parser.add_argument("--speed", action="store_true", help="draws per second")
    parser.add_argument("--steps", type=int, help=f"with --speed (default {SPEED_STEPS})")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps is not None and not arguments.speed:
        parser.error("--steps needs --speed; the values take 2,000")
    if arguments.run:
        program, file, step_size, steps, calls = arguments.run
        settings = float(step_size), int(steps), int(calls)
        path = pathlib.Path(file)
        found = (
            ours(path, program, *settings)
            if program in ("sgld", "metropolis")
            else peer(path, program.endswith("usual loader"), *settings)
        )
        print(json.dumps(found))
        return
    names = ["sgld"] if arguments.speed else ["sgld", "metropolis"]
    programs = dict.fromkeys(names, sys.executable)
    if arguments.peer:
        programs["devinterp"] = arguments.peer
        if arguments.speed:
            programs["devinterp, usual loader"] = arguments.peer
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "network.npz"
        if arguments.speed:
            compare_speed(programs, file, arguments.steps)
        else:
            compare_values(programs, file)


if __name__ == "__main__":
    main()
