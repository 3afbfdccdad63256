"""Sphinx: `sphinx-build -W --keep-going docs docs/_build`."""

from typing import Any

import latex2mathml.converter
from docutils import nodes

import entropy_sgd_jax

project = "entropy_sgd_jax"
author = "The entropy_sgd_jax authors"
copyright = f"2026, {author}"
version = release = entropy_sgd_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"entropy_sgd_jax {version}"

myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the notebooks are kept without outputs, and run at each build
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autosummary_generate = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True

html_math_renderer = "mathml"  # what browsers set by themselves: no script, no network


def mathml(node: nodes.Element, display: str) -> str:
    """An equation as MathML; rows of one in `aligned`, as Sphinx has it."""
    latex = node.astext()
    if "\\\\" in latex and "\\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    return latex2mathml.converter.convert(latex, display=display)


def inline_math(writer: Any, node: nodes.Element) -> None:
    """Writes an equation inside a line."""
    writer.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def display_math(writer: Any, node: nodes.Element) -> None:
    """Writes an equation of its own, which scrolls by itself if the screen is narrow."""
    writer.body.append(f'<div class="math" style="overflow-x: auto">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
