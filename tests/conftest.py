"""Set up before JAX is imported."""

import importlib.util
import mmap
import os
import pathlib

# The tests compile far more than they compute. Without LLVM's optimisations they take half the
# time, and half of that again if XLA emits fusions directly, not through MLIR. Programs that tests
# start inherit the flags. `XLA_FLAGS="" pytest` compiles as users do.
FLAGS = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "false",
}


def known(flag: str) -> bool:
    """Whether this jaxlib has the flag: XLA aborts at any that it does not know."""
    folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
    library = max(folder.glob("*.so"), key=lambda path: path.stat().st_size)
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        return code.find(flag.encode()) >= 0


if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join(f"--{flag}={FLAGS[flag]}" for flag in FLAGS if known(flag))

# Programs that tests start, some of them for newer versions of JAX than the lowest.
collect_ignore_glob = ["*_recipes.py", "*/killed_run.py", "*/faulty_process.py"]
