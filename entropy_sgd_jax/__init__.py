"""Entropy-SGD for JAX: Optax optimizers that seek wide valleys."""

from entropy_sgd_jax._averages import average_over_replicas, replica_average
from entropy_sgd_jax._diagnostics import EntropicDiagnostics
from entropy_sgd_jax._diloco import diloco
from entropy_sgd_jax._optimizers import entropic, entropy_adam, entropy_sgd
from entropy_sgd_jax._parle import add_elastic_coupling, elastic_sgd, parle, replicated_sgd
from entropy_sgd_jax._schedules import scoping
from entropy_sgd_jax._state import EntropicState, anchor_params, entropic_diagnostics

__version__ = "0.2.0"

__all__ = [
    "EntropicDiagnostics",
    "EntropicState",
    "add_elastic_coupling",
    "anchor_params",
    "average_over_replicas",
    "diloco",
    "elastic_sgd",
    "entropic",
    "entropic_diagnostics",
    "entropy_adam",
    "entropy_sgd",
    "parle",
    "replica_average",
    "replicated_sgd",
    "scoping",
]
