"""Pyright and mypy accept what the pages show, and refuse what is wrong.

Run by `.ci/run`, and on the wheel by `.ci/wheel tests`. A page is checked block by block, each
with the statements before it that it depends on: one page defines `loss` again and again, which a
reader takes for separate programs.
"""

from __future__ import annotations

import ast
import dis
import json
import os
import pathlib
import re
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What pyright's strict mode finds in any program on Optax, which has no stubs.
STRICT = "# pyright: strict, reportMissingTypeStubs=false"
# What it finds in the pages as well: they leave the types of their own parameters out, import for
# the blocks to come, and much of jax itself is unknown to pyright (jit, grad, jnp.zeros).
STRICT_PAGE = STRICT + "".join(
    f", {rule}=false"
    for rule in (
        "reportMissingParameterType",
        "reportUnknownArgumentType",
        "reportUnknownLambdaType",
        "reportUnknownMemberType",
        "reportUnknownParameterType",
        "reportUnknownVariableType",
        "reportUnusedImport",
        "reportUnusedVariable",
    )
)
MYPY = [
    "--strict",
    "--allow-untyped-defs",
    "--allow-untyped-calls",
    "--allow-subclassing-any",
    "--disable-error-code=import-untyped",
]

# Lines at which other libraries' annotations are narrower than what they do.
OTHERS = {
    "verbose=0": "Keras takes numbers, and says str",
    "svi.constrain_fn(": "NumPyro's is None before `init`",
    "found._replace(": "Flax returns what it was given, and says dict",
    "state.hyperparams[": "Optax says that every state is a tree of arrays",
    "nnx.split(model, nnx.Param, ...)": "Flax's overload has an unpacked tuple before the last",
}

GIVEN = """
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from entropy_sgd_jax import (
    EntropicState,
    add_elastic_coupling,
    anchor_params,
    average_over_replicas,
    diloco,
    elastic_sgd,
    entropic,
    entropic_diagnostics,
    entropy_adam,
    entropy_sgd,
    flatness,
    parle,
    replica_average,
    replicated_sgd,
    scoping,
)

def loss(params: Any, batch: Any) -> jax.Array:
    return jnp.sum(params)

def grad_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
    return 2 * params

params = jax.random.normal(jax.random.key(0), (3,))
batches = jax.random.normal(jax.random.key(1), (2, 3))
tx = entropy_sgd(1.0)
state: EntropicState = tx.init(params)
density = flatness.spectral_density(loss, params, batches)
"""
ACCEPTED = """
entropy_sgd(optax.cosine_decay_schedule(1.0, 100), key=jax.random.key(0))
entropy_sgd(np.float32(1), scope=scoping(0.01, 1e-3), accumulator_dtype=jnp.float32)
entropy_sgd(lambda step: 0.1 / (1 + step), averaging=params[0], accumulator_dtype="float32")
entropy_adam(0.01, b1=0.5, inner_momentum=None, inner_steps=5)
entropic(tx, batch_axis_name=("hosts", "devices"), key=np.array([0, 1], np.uint32))
parle(0.1, replica_axis_name="replica", coupling=scoping(1.0, 1e-3, 10.0))
diloco(inner_steps=5, inner_optimizer=optax.adamw(optax.linear_schedule(1e-3, 0.0, 100)))
diloco(0.7, inner_steps=5, inner_learning_rate=0.1, inner_transform=optax.scale_by_adam())
elastic_sgd(0.1, replica_axis_name=("a", "b"), coupling=0.1).init(params)
replicated_sgd(0.1, None, replica_axis_name="replica", coupling=scoping(1e-4, 1e-2))
optax.chain(optax.clip(1.0), add_elastic_coupling(0.1, "replica"), average_over_replicas(None), tx)
optax.MultiSteps(tx, 4)
tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
tx.update(params, state, params, value=params[0])
anchor_params(tx.init({"w": params}), {"w": params})["w"].shape
anchor_params(optax.chain(tx).init(params), replica_average(params, "replica")).shape
print(state.count + 1, entropic_diagnostics(state).scope + 1)
density.density(np.linspace(0, 1, 5), 0.1)
flatness.local_entropy(loss, params, batches, scope=np.array([0.1, 1.0]), key=jax.random.key(0))
flatness.top_eigenvalues(flatness.GaussNewton(loss, loss), params, [None], k=2)
flatness.local_energy(loss, params, [params], 0.1, batch_size=lambda batch: 1.0)
flatness.plots.spectrum([0.1, 0.2])
"""
REFUSED = """
entropy_sgd(1.0, scpoe=0.1)
entropy_sgd(1.0, scope="a")
entropy_sgd(1.0, scope=1j)
entropy_sgd("a")
entropy_sgd(lambda step: "a")
entropy_sgd(1.0, streaming=1.5)
entropy_sgd(1.0, noise="gausian")
entropy_sgd(1.0, inner_steps=2.5)
entropy_sgd(1.0, batch_axis_name=["data"])
entropy_adam(0.01, b1="a")
parle(0.1, replica_axis_name="replica")
parle(0.1, replica_axis_name="replica", coupling="a")
diloco(inner_learning_rate=0.1)
elastic_sgd(0.1, replica_axis_name="replica", coupling=0.1, scope=0.1)
scoping("a", 1e-3)
anchor_params(state)
entropic_diagnostics(state).inner_los
state.cuont
tx.update(None, state, params, 0)
tx.update(None, state, params, grad_fn=0.1)
flatness.spectral_density(0.1, params, batches)
flatness.local_entropy(loss, params, batches)
flatness.local_entropy(loss, params, batches, scope="a")
flatness.sharpness(loss, params, batches, radius=0.1, num_steps="a")
flatness.hessian_trace(loss, params, batches).valu
density.density("a", 0.1)
"""
# To mypy, whatever has a type of Optax's may be anything.
REFUSED_BY_PYRIGHT = """
entropy_sgd(1.0, inner_transform=0.9)
entropic(0.1)
diloco(inner_steps=5, inner_optimizer=0.1)
"""


def stored(code: types.CodeType) -> set[str]:
    """The global names that the code of a statement binds."""
    return {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}


def loaded(code: types.CodeType) -> set[str]:
    """The global names that it or a function in it reads."""
    read = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_NAME", "LOAD_GLOBAL")
    }
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return read.union(*map(loaded, inner))


def programs(page: pathlib.Path) -> Iterator[str]:
    """Each block of a page, after the statements before it that it depends on."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    before: list[ast.stmt] = []
    for block in blocks:
        kept: list[ast.stmt] = []
        needed: set[str] = set()
        own = ast.parse(block).body
        for statement in reversed(before + own):
            code = compile(ast.Module([statement], []), page.name, "exec")
            if statement in own or stored(code) & needed:
                kept.insert(0, statement)
                needed = (needed - stored(code)) | loaded(code)
        before += own
        yield "\n".join(map(ast.unparse, kept)) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("programs")
    for page in PAGES:
        for number, program in enumerate(programs(page)):
            name = f"{page.stem.lower()}_{number}.py"
            (folder / name).write_text(program)
            (folder / f"strict_{name}").write_text(f"{STRICT_PAGE}\n{program}")
    (folder / "refused.py").write_text(GIVEN + REFUSED + REFUSED_BY_PYRIGHT)
    (folder / "accepted.py").write_text(GIVEN + ACCEPTED)
    (folder / "strict_accepted.py").write_text(f"{STRICT}\n{GIVEN}{ACCEPTED}")
    (folder / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "typeCheckingMode": "basic",
                "reportUnusedExpression": False,
            }
        )
    )
    return folder


def run(folder: pathlib.Path, *command: str) -> str:
    beside = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PATH": beside, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # clean, or with findings
    return done.stdout


@pytest.fixture(scope="module")
def by_pyright(folder: pathlib.Path) -> dict[str, dict[int, str]]:
    """The first error of each line, of each program."""
    report = json.loads(run(folder, "pyright", "--outputjson", "."))
    assert report["summary"]["filesAnalyzed"] > 100
    found: dict[str, dict[int, str]] = {}
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            line = one["range"]["start"]["line"]
            found.setdefault(pathlib.Path(one["file"]).name, {}).setdefault(line, one["message"])
    return found


@pytest.fixture(scope="module")
def by_mypy(folder: pathlib.Path) -> dict[str, dict[int, str]]:
    programs = sorted(path.name for path in folder.glob("*.py") if "strict_" not in path.name)
    output = run(folder, "mypy", *MYPY, "--scripts-are-modules", *programs)
    found: dict[str, dict[int, str]] = {}
    for name, line, message in re.findall(r"^(\w+\.py):(\d+): error: (.*)$", output, re.MULTILINE):
        found.setdefault(name, {}).setdefault(int(line) - 1, message)
    return found


CHECKERS = ["by_pyright", "by_mypy"]


@pytest.mark.parametrize("checker", CHECKERS)
def test_what_is_right_is_accepted(
    folder: pathlib.Path, checker: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(checker)
    wrong = [
        f"{name}: {source}: {message}"
        for name in sorted(found.keys() - {"refused.py"})
        for line, message in found[name].items()
        if not any(
            part in (source := (folder / name).read_text().splitlines()[line]) for part in OTHERS
        )
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("checker", "expected"),
    [("by_pyright", REFUSED + REFUSED_BY_PYRIGHT), ("by_mypy", REFUSED)],
    ids=CHECKERS,
)
def test_what_is_wrong_is_refused(
    folder: pathlib.Path, checker: str, expected: str, request: pytest.FixtureRequest
) -> None:
    refused = request.getfixturevalue(checker)["refused.py"]
    source = (folder / "refused.py").read_text().splitlines()
    assert [source[line] for line in sorted(refused)] == list(filter(None, expected.splitlines()))
