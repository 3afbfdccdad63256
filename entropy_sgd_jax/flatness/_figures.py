"""What all pictures share."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, BLUE = "#222222", "#0072b2"
# Of Okabe and Ito, told apart by colour-blind readers too.
COLOURS = (BLUE, "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", INK)


def new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Without pyplot, so that nothing is kept or shown behind the caller's back."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
