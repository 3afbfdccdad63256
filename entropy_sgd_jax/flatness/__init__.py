"""How wide is the valley: Hessian spectra, local energy, local entropy, for any JAX loss.

Everything here takes ``loss(params, batch)``, the mean of a loss over one batch; ``params``, any
pytree; and ``batches``, the data set. The curvature, energy or entropy is that of the mean over the
whole data set, of which one batch at a time is in use.

``batches`` is one of two things:

- *stacked*: arrays in a tuple, dict, NamedTuple or other pytree, all with one leading axis over
  the batches. Everything is then traceable, and works under ``jax.jit``. A single
  batch is stacked by ``jax.tree.map(lambda leaf: leaf[None], batch)``.
- a *list* or any other iterable of batches, which may differ in size; it is iterated once for each
  product or evaluation, so an iterator, which is used up after one pass, is refused. ``[batch]``
  is a single batch, and ``[None]`` stands for a loss that takes no data.

``batch_size``, a function of a batch, is the weight of that batch in the mean. By default it is the
length of the leading axis of the batch's first leaf that has one; a batch that is padded to full
size, or starts with a legacy key, needs a function that counts the real examples, and a ``loss``
that is the mean over those alone.

A ``GaussNewton`` in place of ``loss`` turns every Hessian into the generalised Gauss-Newton
matrix. The spectrum of one layer is that of a loss which closes over the others:

>>> import jax, jax.numpy as jnp
>>> from entropy_sgd_jax import flatness
>>> params = {"first": jnp.ones(2), "second": jnp.ones(3)}
>>> def loss(params, batch):
...     return jnp.sum(params["first"] ** 2) + 2 * jnp.sum(params["second"] ** 2)
>>> def loss_of_first(first, batch):
...     return loss(params | {"first": first}, batch)
>>> print(flatness.exact_spectrum(loss_of_first, params["first"], [None]))
[2. 2.]

``flatness.plots`` draws the pictures; it needs matplotlib and is imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from entropy_sgd_jax.flatness import _checks
from entropy_sgd_jax.flatness._certificate import PacBayesBound, pac_bayes_bound
from entropy_sgd_jax.flatness._curvature import (
    GaussNewton,
    gauss_newton_vector_product,
    hessian_vector_product,
)
from entropy_sgd_jax.flatness._entropy import local_entropy
from entropy_sgd_jax.flatness._estimates import Estimate
from entropy_sgd_jax.flatness._exact import exact_spectrum
from entropy_sgd_jax.flatness._landscape import local_energy, sharpness
from entropy_sgd_jax.flatness._learning_coefficient import (
    LearningCoefficient,
    local_learning_coefficient,
)
from entropy_sgd_jax.flatness._slices import LossLine, LossPlane, loss_on_line, loss_on_plane
from entropy_sgd_jax.flatness._spectrum import (
    SpectralDensity,
    spectral_density,
)
from entropy_sgd_jax.flatness._tempering import TemperatureLadder
from entropy_sgd_jax.flatness._top import top_eigenvalues
from entropy_sgd_jax.flatness._trace import hessian_trace

if TYPE_CHECKING:
    from entropy_sgd_jax.flatness import plots as plots

__all__ = [
    "Estimate",
    "GaussNewton",
    "LearningCoefficient",
    "LossLine",
    "LossPlane",
    "PacBayesBound",
    "SpectralDensity",
    "TemperatureLadder",
    "exact_spectrum",
    "gauss_newton_vector_product",
    "hessian_trace",
    "hessian_vector_product",
    "local_energy",
    "local_entropy",
    "local_learning_coefficient",
    "loss_on_line",
    "loss_on_plane",
    "pac_bayes_bound",
    "sharpness",
    "spectral_density",
    "top_eigenvalues",
]


def __getattr__(name: str) -> Any:
    if name == "plots":
        with _checks.extra("plots"):
            return importlib.import_module("entropy_sgd_jax.flatness.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
