"""Two processes train to the same parameters as one, and one writes for both."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).parents[1] / "examples" / "many_hosts.py"
REPORT = r"(\d) processes, 4 devices: test error (\S+) %, sum of \|parameters\| (\S+)"


def report(*arguments: str | pathlib.Path) -> tuple[str, float, float]:
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(REPORT, done.stdout)  # from the first process alone
    return found[0], float(found[1]), float(found[2])


def test_two_processes_equal_one_and_go_on_where_the_other_stopped(tmp_path: pathlib.Path) -> None:
    one = report("--processes", "1")
    two = report("--checkpoints", tmp_path)
    assert (one[0], two[0]) == ("1", "2")
    assert two[1] == one[1] < 15
    assert abs(two[2] - one[2]) < 1e-4 * one[2]
    # The last checkpoint is gone: one process goes on from the one that two have written.
    (tmp_path / "60").rename(tmp_path / "lost")
    resumed = report("--checkpoints", tmp_path, "--processes", "1")
    assert resumed[0] == "1"
    assert abs(resumed[2] - two[2]) < 1e-4 * two[2]


def test_a_bad_number_of_processes_is_named() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--processes", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "many_hosts.py: error: --processes 3 given, 1, 2 or 4 expected\n"
