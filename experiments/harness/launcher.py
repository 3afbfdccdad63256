"""Several processes that train as one: started here or by a cluster, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

import jax

from experiments.checkpoints import CheckpointError
from experiments.io.errors import InputError

LAST_WORDS = 5  # seconds for the others to end when one has failed


def take_part(
    train: Callable[[], None], address: str = "", count: str = "", rank: str = ""
) -> None:
    """Calls `train` as one of several processes; without a place, as the cluster says.

    If one of them fails, it ends at once. An error of a checkpoint, which all of them raise alike,
    is left to the first one to show.
    """
    try:
        if address:
            end_with_launcher()
            jax.distributed.initialize(address, int(count), int(rank))
        else:
            jax.distributed.initialize()  # finds coordinator, count and rank by itself
        train()
    except CheckpointError:
        if jax.process_index() == 0:
            raise
        raise SystemExit(2) from None
    except BaseException as error:  # ends this process alone: JAX would wait for the others
        code = 2 if isinstance(error, InputError) else 1
        program = os.path.basename(sys.argv[0])
        print(
            f"{program}: error: {error}" if code == 2 else traceback.format_exc(),
            file=sys.stderr,
            flush=True,
        )
        os._exit(code)


def start_processes(count: int, devices: int, arguments: list[str]) -> int:
    """Runs this program `count` times on this machine; the exit code of the first that fails.

    Each gets `--join`, with the place that `take_part` wants, and an equal part of the `devices`,
    which are of the CPU. None of them outlives the first failure, a signal to this process, or its
    end.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices // count}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    join = [sys.executable, sys.argv[0], *arguments, "--join", f"localhost:{port}", str(count)]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    processes: list[subprocess.Popen] = []
    try:
        for rank in range(count):
            # A pipe that nobody writes to, and that the system closes when this process ends.
            processes.append(
                subprocess.Popen(
                    [*join, str(rank)],
                    env=environment,
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
            )
        return first_failure(processes)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for process in processes:
            process.kill()  # which a run with checkpoints survives
        for process in processes:
            process.wait()


def first_failure(processes: list[subprocess.Popen]) -> int:
    """Its exit code, or 0 once all have ended well; the others get a moment to report it too."""
    while not any(codes := [process.poll() for process in processes]):
        if None not in codes:
            return 0
        time.sleep(0.05)
    deadline = time.monotonic() + LAST_WORDS
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        time.sleep(0.05)
    return abs(next(code for code in codes if code))


def end_with_launcher() -> None:
    """Ends this process when the one that holds the other end of its standard input is gone."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
