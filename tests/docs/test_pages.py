"""The Python in the documents runs, from top to bottom of each page, as it is printed."""

from __future__ import annotations

import codeop
import inspect
import os
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable

import jax
import pytest

import entropy_sgd_jax
from entropy_sgd_jax import flatness
from entropy_sgd_jax.flatness import plots

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted(
        page
        for page in (ROOT / "docs").glob("*.md")
        if re.search(r"^```python$", page.read_text(), re.MULTILINE)
    ),
]


IGNORED = ["-Wignore:__array__ implementation:DeprecationWarning"]  # Keras's own, while it saves


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE)  # in the tables of autosummary
    public = [*entropy_sgd_jax.__all__, *flatness.__all__, *plots.__all__]
    assert sorted(listed) == sorted(name for name in public if name != "plots")


DOCUMENTED = [
    getattr(module, name)
    for module in (entropy_sgd_jax, flatness)
    for name in module.__all__
    if callable(getattr(module, name))
]


@pytest.mark.parametrize("thing", DOCUMENTED, ids=lambda thing: thing.__name__)
def test_docstrings_are_set_as_they_are_meant(thing: Callable) -> None:
    text = inspect.getdoc(thing)
    arguments = re.search(r"^Args:\n(.*?)(?=^\S)", text, re.MULTILINE | re.DOTALL)
    if arguments:  # a line that is no argument would be set as one
        names = re.findall(r"^  (\S.*?)(?::|$)", arguments[1], re.MULTILINE)
        assert set(names) <= set(inspect.signature(thing).parameters)
    for block in re.findall(r"^\.\. math::\n((?:  .*\n)+)", text, re.MULTILINE):
        rows = re.split(r"^  &", block, flags=re.MULTILINE)[1:]  # none where nothing is aligned
        assert all(row.endswith("\\\\\n") for row in rows[:-1])


@pytest.mark.parametrize(
    "page",
    [README, *ROOT.glob("ex*/*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_inside_the_repository_lead_somewhere(page: pathlib.Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^":]+)"', text)
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("table", "page"),
    [
        ("table1.md", "docs/reproduction.md"),
        ("dead_units.md", "docs/reproduction.md"),
        ("tuned.md", "experiments/RESULTS.md"),
        ("flatness_table.md", "docs/flatness.md"),
        ("exact_values.md", "docs/learning_coefficient.md"),
        ("coverage.md", "docs/learning_coefficient.md"),
    ],
)
def test_the_page_has_the_table_of_the_logs(table: str, page: str) -> None:
    assert (ROOT / "experiments" / "results" / table).read_text() in (ROOT / page).read_text()


def test_the_version_to_cite_is_the_version() -> None:
    cited = (ROOT / "CITATION.cff").read_text()
    assert re.findall("^version: (.*)$", cited, re.MULTILINE) == [entropy_sgd_jax.__version__]


def test_what_pypi_shows_has_no_relative_link() -> None:
    scripts = runpy.run_path(str(ROOT / ".ci" / "absolute_links"))
    place, text = "https://example.org/owner/name", README.read_text()
    shown = scripts["absolute"](text, place, "v1.0")
    assert f"]({place}/blob/v1.0/docs/quickstart.md)" in shown
    assert f'src="{place}/raw/v1.0/docs/double_well.png"' in shown
    links = re.findall(r"\]\(([^)]+)\)", shown) + re.findall(r'src="([^"]+)"', shown)
    assert [link for link in links if not link.startswith("https://")] == []
    project = (ROOT / "pyproject.toml").read_text() + scripts["urls"](place, "v1.0")
    assert tomllib.loads(project)["project"]["urls"]["Repository"] == place


def test_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 700
    first = re.search(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(first[1].splitlines()) <= 20


def test_the_readme_can_be_pasted_at_a_prompt() -> None:
    """Which ends a loop or a function at an empty line, and refuses one that goes on without."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    pending: list[str] = []
    for line in "\n".join(blocks).splitlines():
        pending.append(line)
        if codeop.compile_command("\n".join(pending)):
            pending = []
    assert len(blocks) >= 4


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="the pages are for a newer JAX")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, "-W", "error", *IGNORED, program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ
        | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
            "PJRT_NPROC": "32",
        },
    )
    assert done.returncode == 0, done.stderr
