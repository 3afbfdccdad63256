"""A progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from entropy_sgd_jax.flatness import _checks

Progress = Callable[[str, int, int], None]  # of a description, what is done, and the total


def tracked(progress: bool | Progress, description: str, total: int) -> Iterator[int]:
    """0 to `total` − 1, shown as they pass: by a bar of `rich`, or by the function given."""
    if callable(progress):
        for i in range(total):
            progress(description, i, total)
            yield i
        progress(description, total, total)
        return
    with _checks.extra("plots"):
        from rich import progress as bars  # here, because only this needs it

    with bars.Progress(*bars.Progress.get_default_columns(), bars.TextColumn("left")) as bar:
        yield from bar.track(range(total), description=description)
