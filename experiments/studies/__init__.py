"""Comparisons of optimizers, a command each; `experiments/RESULTS.md` says what came of them."""

import pathlib

RESULTS = pathlib.Path(__file__).parents[1] / "results"  # where they write numbers and figures
