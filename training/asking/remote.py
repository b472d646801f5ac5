"""What models elsewhere have in common: several requests at once, and patience with what may be answered later."""

from __future__ import annotations

import email.utils
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from . import Question, Unavailable

logger = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each further try of a request that failed by no fault of its own: together more than the minute by
which limits are counted."""
LONGEST_PAUSE = 60.0
"""What a server may ask for at most."""


class Later(Exception):
    """The request may be answered at another time.

    Args:
        pause: seconds that the server asks for.
    """

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


class Remote:
    """A chat with a model elsewhere."""

    where: str
    """What messages call it."""
    workers: int
    """Requests at once."""

    def words(self, question: Question, attempt: int) -> str:
        """The model's words, "" where the reply has none.

        Raises Later for what may pass, ValueError for a question that is not taken, Unavailable for all else.
        """
        raise NotImplementedError

    def answers(self, questions: Sequence[Question], attempt: int = 0) -> list[str | ValueError]:
        """See :class:`training.asking.Chat`."""
        stop, failures = threading.Event(), []

        def ask(question: Question) -> str | ValueError:
            if stop.is_set():  # before this thread's next task could be cancelled
                raise Unavailable("Another request has failed.")
            try:
                return self._answer(question, attempt, stop)
            except BaseException as error:
                failures.append(error)
                stop.set()
                raise

        with ThreadPoolExecutor(self.workers) as pool:
            asked = [pool.submit(ask, question) for question in questions]
            try:
                wait(asked, return_when=FIRST_EXCEPTION)
                if failures:
                    raise failures[0]
                return [one.result() for one in asked]
            except Unavailable as error:
                # What is asked already is waited for: its answers may be paid for. No other is begun, or tried again.
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                error.answered = {
                    place: one.result() for place, one in enumerate(asked)
                    if not one.cancelled() and one.exception() is None
                }  # fmt: skip
                raise
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: Question, attempt: int, stop: threading.Event) -> str | ValueError:
        for pause in (*PAUSES, None):
            try:
                return self.words(question, attempt)
            except ValueError as error:
                return error
            except Later as error:
                if pause is None:
                    raise Unavailable(
                        f"{self.where} failed {len(PAUSES) + 1} times ({error}); see that it runs and has not "
                        "too much to do, or give it a longer timeout or fewer workers."
                    ) from error
                pause = max(pause, min(error.pause, LONGEST_PAUSE))
                logger.info("%s: %s; the next try is in %g s.", self.where, error, pause)
            if stop.wait(pause):
                raise Unavailable("Another request has failed.")


def seconds(after: str) -> float:
    """Of a Retry-After header, which has seconds or a date; 0 for anything else."""
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, TypeError, IndexError):
        return 0.0


def check_workers(workers: object, timeout: float) -> None:
    """Raises ValueError for numbers that cannot be."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1 or not timeout > 0:
        raise ValueError(f"workers is {workers!r}, timeout {timeout!r}; give at least 1 worker and some seconds.")


def one_line(text: object) -> str:
    return " ".join(str(text).split())
