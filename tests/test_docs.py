"""The Python in the documents runs, from top to bottom of each page, as it is printed."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in (ROOT / "docs").glob("*.md")
    if re.search(r"^```python$", page.read_text(), re.MULTILINE)
)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="the pages are for a newer JAX")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )
    assert done.returncode == 0, done.stderr
