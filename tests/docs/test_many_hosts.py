"""Two processes train to the same parameters as one, and one writes for both."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

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
    (tmp_path / "40").rename(tmp_path / "lost")  # their last checkpoint
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


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(launcher: subprocess.Popen[str]) -> list[int]:
    command = ["ps", "-o", "pid=", "--ppid", str(launcher.pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(number) for number in done.stdout.split()]


def is_gone(process: int) -> bool:
    command = ["ps", "-o", "stat=", "-p", str(process)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return state.strip() == "" or state.startswith("Z")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_launcher_and_none_writes_beside_it(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    command = [sys.executable, PROGRAM, "--checkpoints", tmp_path]
    # Shells ignore it in background jobs, perhaps these tests; children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        signal.signal(signal.SIGINT, before)
        wait_until((tmp_path / "configuration.json").exists)
        started = children(launcher)
        assert len(started) == 2
        for process in started:  # they would be done before the signal, or a second run, comes
            os.kill(process, signal.SIGSTOP)
        if number == signal.SIGTERM:
            second = subprocess.run(command, capture_output=True, text=True, check=False)
            assert second.returncode == 2
            (line,) = second.stderr.splitlines()
            assert line.startswith(f"many_hosts.py: error: another run is using {tmp_path}: ")
        launcher.send_signal(number)
        for process in started:
            with contextlib.suppress(ProcessLookupError):  # the launcher may have ended it
                os.kill(process, signal.SIGCONT)
        output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode in (-number, 128 + number)  # a shell shows both alike
    assert "test error" not in output, "it had ended before"
    assert "Traceback" not in errors
    wait_until(lambda: all(map(is_gone, started)))


def test_when_one_process_dies_the_others_end_too(tmp_path: pathlib.Path) -> None:
    with subprocess.Popen(
        [sys.executable, PROGRAM, "--checkpoints", tmp_path], stderr=subprocess.DEVNULL
    ) as launcher:
        wait_until((tmp_path / "configuration.json").exists)
        started = children(launcher)
        os.kill(started[1], signal.SIGKILL)
        assert launcher.wait(60) != 0
    assert all(map(is_gone, started))
