"""Set up before JAX is imported."""

import os

# The tests compile far more than they compute: without LLVM's optimisations they take half the
# time. `XLA_FLAGS="" pytest` runs them with.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Programs that tests start, some of them for newer versions of JAX than the lowest.
collect_ignore_glob = ["*_recipes.py"]
