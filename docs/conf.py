"""Sphinx: `sphinx-build -W --keep-going docs docs/_build`."""

import entropy_sgd_jax

project = "entropy_sgd_jax"
author = "The entropy_sgd_jax authors"
copyright = f"2026, {author}"
version = release = entropy_sgd_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "entropy_sgd_jax"

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the notebooks are kept without outputs, and run at each build
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_typehints = "none"  # the docstrings say it in words
autodoc_member_order = "bysource"
napoleon_google_docstring = True
