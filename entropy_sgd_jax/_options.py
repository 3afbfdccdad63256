"""One place for each option: the signature of `entropic`, which the other factories show."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from entropy_sgd_jax import _checks

Factory = TypeVar("Factory", bound=Callable[..., Any])


def with_options_of(of: Callable[..., Any], **defaults: Any) -> Callable[[Factory], Factory]:
    """Spells the `**options` of a factory out as the keywords of `of`, with other `defaults`.

    `optax.inject_hyperparams`, `help` and notebooks read the signature. The factory is called with
    all options.
    """

    def decorate(factory: Factory) -> Factory:
        own = [
            parameter
            for parameter in inspect.signature(factory).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        names = {parameter.name for parameter in own}
        options = {
            name: parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in inspect.signature(of).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in names
        }
        values = {name: option.default for name, option in options.items()}

        @functools.wraps(factory)
        def with_defaults(*args: Any, **kwargs: Any) -> Any:
            return factory(*args, **{**values, **kwargs})

        signature = inspect.signature(factory).replace(parameters=[*own, *options.values()])
        with_defaults.__signature__ = signature  # type: ignore[attr-defined]
        return advised(cast(Factory, with_defaults))

    return decorate


def advised(factory: Factory) -> Factory:
    """Lets the error about an unknown keyword say which one may be meant."""
    known = list(inspect.signature(factory).parameters)

    @functools.wraps(factory)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _checks.known_keywords(factory.__name__, kwargs, known)
        return factory(*args, **kwargs)

    return cast(Factory, checked)
