"""Set up before JAX is imported."""

import os

# The tests compile far more than they compute: without LLVM's optimisations they take half the
# time. `XLA_FLAGS="" pytest` runs them with.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
