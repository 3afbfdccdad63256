"""The local learning coefficient here and in devinterp 1.x: one network, the same settings.

    python benchmarks/learning_coefficient.py                     # ours alone
    python benchmarks/learning_coefficient.py --peer PYTHON       # an interpreter with devinterp

A network 64-64-10 is trained on the digits of scikit-learn; then chains of SGLD with the same step
size, temperature, localisation and batch size run in both, and a Metropolis-adjusted chain here.
devinterp 1.3.2 runs beside PyTorch on a CPU: `pip install torch numpy pandas matplotlib
cloudpickle torchvision`, then `pip install --no-deps devinterp==1.3.2`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

BATCH, SCOPE, STEP_SIZE, CHAINS, STEPS = 128, 100.0, 1e-4, 8, 1000


def ours(file: pathlib.Path) -> list[dict[str, Any]]:
    """Trains, leaves parameters and data in `file`, and measures."""
    import jax
    import jax.numpy as jnp
    import optax
    from sklearn.datasets import load_digits

    from entropy_sgd_jax import flatness

    digits = load_digits()
    count = len(digits.target) // BATCH * BATCH
    images = (digits.data[:count] / 16).astype(np.float32)
    labels = digits.target[:count]
    random = np.random.default_rng(0)
    params = {
        "w1": jnp.asarray(random.normal(size=(64, 64)) / 8, jnp.float32),
        "b1": jnp.zeros(64),
        "w2": jnp.asarray(random.normal(size=(64, 10)) / 8, jnp.float32),
        "b2": jnp.zeros(10),
    }

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden = jnp.tanh(batch[0] @ params["w1"] + params["b1"])
        logits = hidden @ params["w2"] + params["b2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    adam = optax.adam(3e-3)

    @jax.jit
    def train(params: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = adam.update(jax.grad(loss)(params, (images, labels)), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, adam.init(params)), length=1000)[0][0]

    params = jax.block_until_ready(train(params))
    init_loss = float(loss(params, (images, labels)))
    np.savez(file, images=images, labels=labels, init_loss=init_loss, **params)
    mini = jax.tree.map(lambda x: jnp.reshape(x, (-1, BATCH, *x.shape[1:])), (images, labels))
    whole = jax.tree.map(lambda x: jnp.asarray(x)[None], (images, labels))
    sgld = {"method": "sgld", "step_size": STEP_SIZE, "num_steps": 2 * STEPS}
    rows = []
    for name, batches, options in [("SGLD", mini, sgld), ("Metropolis", whole, {})]:
        began = time.perf_counter()
        estimate = flatness.local_learning_coefficient(
            loss, params, batches, scope=SCOPE, num_chains=CHAINS, **options
        )
        value = jax.block_until_ready(estimate.value)
        seconds = time.perf_counter() - began
        steps = estimate.trace.size
        rows.append(
            {
                "program": f"entropy_sgd_jax, {name}",
                "value": float(value),
                "standard_error": float(estimate.standard_error),
                "step_bias_subtracted": float(estimate.step_bias),
                "gradients_per_second": steps / seconds,
                "seconds": seconds,
            }
        )
    return rows


def peer(file: pathlib.Path) -> list[dict[str, Any]]:
    """The same by devinterp, from what `ours` left."""
    import warnings

    warnings.simplefilter("ignore")
    import torch
    from devinterp.optim.sgld import SGLD
    from devinterp.slt.sampler import estimate_learning_coeff_with_summary

    torch.set_num_threads(1)  # more wait for each other on cores that do other work too
    stored = np.load(file)
    first, second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)
    with torch.no_grad():
        for layer, number in ((first, 1), (second, 2)):
            layer.weight.copy_(torch.tensor(stored[f"w{number}"].T))
            layer.bias.copy_(torch.tensor(stored[f"b{number}"]))
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    data = torch.utils.data.TensorDataset(
        torch.tensor(stored["images"]), torch.tensor(stored["labels"]).long()
    )
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)

    def evaluate(model: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    nbeta = len(data) / np.log(len(data))
    began = time.perf_counter()
    result = estimate_learning_coeff_with_summary(
        model,
        loader,
        evaluate=evaluate,
        sampling_method=SGLD,
        optimizer_kwargs={"lr": STEP_SIZE, "localization": SCOPE, "nbeta": nbeta},
        num_draws=STEPS,
        num_chains=CHAINS,
        num_burnin_steps=STEPS,
        init_loss=float(stored["init_loss"]),
        seed=0,
        verbose=False,
    )
    seconds = time.perf_counter() - began
    return [
        {
            "program": "devinterp, SGLD",
            "value": float(result["llc/mean"]),
            "standard_error": float(result["llc/std"]) / CHAINS**0.5,
            "gradients_per_second": 2 * STEPS * CHAINS / seconds,
            "seconds": seconds,
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with devinterp 1.x")
    parser.add_argument("--read", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(peer(arguments.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "network.npz"
        rows = ours(file)
        if arguments.peer:
            command = [arguments.peer, __file__, "--read", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows += json.loads(done.stdout.splitlines()[-1])
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
