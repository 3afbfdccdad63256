"""Sphinx: `sphinx-build -W --keep-going docs docs/_build`."""

import re
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.util import logging

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
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme = "furo"
html_title = f"entropy_sgd_jax {version}"

myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the notebooks are kept without outputs, and run at each build
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autosummary_generate = True
autodoc_type_aliases = {name: name for name in ("ArrayLike", "ScalarOrSchedule")}
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
napoleon_google_docstring = True

html_math_renderer = "mathml"  # what browsers set by themselves: no script, no network


def mathml(node: nodes.Element, display: str) -> str:
    """An equation as MathML; one of several rows in `split`, as Sphinx does for MathJax."""
    latex = node.astext()
    if "\\\\" in latex and "\\begin" not in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    converted = latex2mathml.converter.convert(latex, display=display)
    if "<mi>&</mi>" in converted or "<mi>\\" in converted:
        logging.getLogger(__name__).warning("not understood: %s", latex, location=node)
    return converted


def inline_math(writer: Any, node: nodes.Element) -> None:
    """Writes an equation inside a line."""
    writer.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def display_math(writer: Any, node: nodes.Element) -> None:
    """Writes an equation of its own, which scrolls by itself if the screen is narrow."""
    writer.body.append(f'<div class="math">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def named(app: Any, what: str, name: str, thing: Any, options: Any, *signature: Any) -> Any:
    """The names of types inside unions too, where Sphinx prints its own stand-in for them."""
    return [part and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part) for part in signature]


def keep_errors(app: Any, document: nodes.document) -> None:
    """A mean and its error stay on one line."""
    for text in list(document.findall(nodes.Text)):
        if " ± " in text:
            text.parent.replace(text, nodes.Text(text.replace(" ± ", "\u00a0±\u00a0")))


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", keep_errors)
    app.connect("autodoc-process-signature", named)
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
