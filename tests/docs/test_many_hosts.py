"""Two processes train to the same parameters as one, and one writes for both."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).parents[2] / "examples" / "many_hosts.py"
REPORT = r"(\d) processes, 4 devices: test error (\S+) %, sum of \|parameters\| (\S+)"


def report(*arguments: str | pathlib.Path) -> tuple[str, float, float]:
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(REPORT, done.stdout)  # from the first process alone
    return found[0], float(found[1]), float(found[2])


def test_one_process_goes_on_where_two_stopped_and_ends_as_they_do(tmp_path: pathlib.Path) -> None:
    two = report("--checkpoints", tmp_path)
    (tmp_path / "60").rename(tmp_path / "lost")  # their last checkpoint
    one = report("--checkpoints", tmp_path, "--processes", "1")
    assert (two[0], one[0]) == ("2", "1")
    assert two[1] == one[1] < 15
    assert abs(two[2] - one[2]) < 1e-5 * one[2]


def test_a_bad_number_of_processes_is_named() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--processes", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "many_hosts.py: error: --processes 3 given, 1, 2 or 4 expected\n"
