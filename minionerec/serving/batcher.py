"""Micro-batching: questions that wait at the same time share a search.

One thread searches. While it does, questions gather, and the next search takes as many as
``max_batch`` of them; an idle thread waits ``max_wait`` for company and not longer.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minionerec.serving.fuser import Ranked
from minionerec.serving.served import Question

log = logging.getLogger("minionerec.serving")


class Full(Exception):
    """More questions wait than can be answered in time."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A question with the place that its answer goes to."""

    question: Question
    answer: asyncio.Future[Ranked]
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Takes questions from the event loop, answers them from a thread of its own.

    Args:
        max_batch: questions that share a search.
        max_wait: seconds that the first of them waits for others.
        max_waiting: questions that may wait before further ones are turned away.
        seen: is told the size of every batch.
    """

    def __init__(
        self,
        max_batch: int,
        max_wait: float,
        max_waiting: int,
        seen: Callable[[int], None],
    ):
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_waiting = max_waiting
        self._seen = seen
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._left_over: list[Waiting] = []  # of another version than the batch before
        self._thread = threading.Thread(target=self._work, name="search", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether anybody would answer."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Questions that no search has taken yet."""
        return self._queue.qsize() + len(self._left_over)

    def ask(self, questions: Sequence[Question]) -> list[asyncio.Future[Ranked]]:
        """Queue questions; a future is cancelled where nobody waits for it any more.

        Raises:
            Full: too many wait already.
        """
        if self.waiting + len(questions) > self._max_waiting:
            raise Full
        loop = asyncio.get_running_loop()
        futures = []
        for question in questions:
            future: asyncio.Future[Ranked] = loop.create_future()
            self._queue.put(Waiting(question, future, loop))
            futures.append(future)
        return futures

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open or self._left_over:
            is_open = self._collect(is_open)
            batch = self._next_batch()
            if not batch:
                continue
            self._seen(len(batch))
            try:
                served = batch[0].question.served
                answers = served.search([one.question for one in batch])
            except Exception as error:
                log.exception("a search failed")
                _tell(batch, error=error)
            else:
                _tell(batch, answers=answers)

    def _collect(self, is_open: bool) -> bool:
        """Wait for a batch to fill up; returns whether more may come."""
        until = time.monotonic() + self._max_wait
        while is_open and len(self._left_over) < self._max_batch:
            wait = None if not self._left_over else max(0.0, until - time.monotonic())
            try:
                one = self._queue.get(timeout=wait)
            except queue.Empty:
                break
            if one is None:
                return False
            if not self._left_over:
                until = time.monotonic() + self._max_wait
            self._left_over.append(one)
        return is_open

    def _next_batch(self) -> list[Waiting]:
        """The questions that came first, all of one version; given up ones are forgotten."""
        wanted = [one for one in self._left_over if not one.answer.cancelled()]
        batch: list[Waiting] = []
        rest: list[Waiting] = []
        for one in wanted:
            is_same = one.question.served is wanted[0].question.served
            if is_same and len(batch) < self._max_batch:
                batch.append(one)
            else:
                rest.append(one)
        self._left_over = rest
        return batch


def _tell(
    batch: Sequence[Waiting],
    answers: Sequence[Ranked] = (),
    error: Exception | None = None,
) -> None:
    """Hand answers, or what went wrong, to the event loop; futures are not for other threads."""

    def tell() -> None:
        for place, one in enumerate(batch):
            if one.answer.done():
                continue
            if error is not None:
                one.answer.set_exception(error)
            else:
                one.answer.set_result(answers[place])

    try:
        batch[0].loop.call_soon_threadsafe(tell)
    except RuntimeError:
        log.warning("%d answers came after the end", len(batch))
