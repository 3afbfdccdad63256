"""Rounds of islands that are Ray actors: asked together, awaited until a deadline."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray

from experiments.islands.wire import Message


class Answer(NamedTuple):
    """What an island has to say about a round."""

    pseudo_gradient: Message
    tokens: int  # that it has seen in this round
    loss: float  # mean over the round's gradients; NaN if the round does not count


class Islands:
    """Actors with a method ``train(round_number, x)`` that returns an Answer, and ``process()``.

    An island works on one round at a time. One that is slow is left out, and asked again when it
    has answered; its late answer is dropped, since it is about an old x. One that dies is started
    again by Ray (``max_restarts``), and asked in the next round.
    """

    def __init__(self, start: Callable[[int], Any]) -> None:
        """With `start`, which makes the actor of a number."""
        self._start = start
        self._actors: list[Any] = []
        self._pending: dict[Any, int] = {}  # the number of the island that owes an answer
        self._processes: dict[int, Any] = {}
        self._asked: list[int] = []  # those who got the last round's x

    def __len__(self) -> int:
        """Those that take part, the slow and the dying included."""
        return len(self._actors)

    def join(self) -> None:
        """One more, from the next round on."""
        self._actors.append(self._start(len(self)))

    def ask(self, round_number: int, x: Any) -> list[int]:
        """Starts a round of all that are free; returns their numbers."""
        free = [number for number in range(len(self)) if number not in self._pending.values()]
        stored = ray.put(x)
        for number in free:
            actor = self._actors[number]
            self._processes[number] = actor.process.remote()
            self._pending[actor.train.remote(round_number, stored)] = number
        self._asked = free
        return free

    def kill(self, number: int) -> None:
        """Ends its process, on this machine, as soon as it has one."""
        os.kill(ray.get(self._processes[number]), signal.SIGKILL)

    def answers(self, seconds: float) -> Iterator[tuple[int, Answer | None]]:
        """The islands asked in this round with their answers, None of one that has died.

        Ends `seconds` after the first answer, if some still owe theirs.
        """
        asked, deadline = set(self._asked), None
        while asked & set(self._pending.values()):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(self._pending), timeout=left)
            if not done:
                return
            number = self._pending.pop(done[0])
            try:
                answer = ray.get(done[0])
            except ray.exceptions.RayActorError:
                answer = None
            if number not in asked:
                continue  # late, or dead since
            asked.discard(number)
            if answer is not None and deadline is None:
                deadline = time.monotonic() + seconds
            yield number, answer
