"""Many requests at a time, on threads that hold nobody up.

Promises: results come in the order of the tasks; the first failure calls off what has not begun, waits for what has,
and is raised; Ctrl-C ends the wait at once, and what is under way then ends by itself, without keeping the
process from exiting. Tasks may rely on what comes before them, and on nothing else: there may be one thread.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from itertools import chain, islice
from typing import Any, Generic, TypeVar

__all__ = ["Beside", "run_all", "wait_for"]

T = TypeVar("T")

# Seconds: a signal that arrives just before an endless wait would not end it.
_GLANCE = 0.5


def wait_for(outcome: Future[Any]) -> None:
    """Returns when there is an outcome. Ctrl-C ends the wait."""
    while not outcome.done():
        wait([outcome], timeout=_GLANCE)


class Beside(Generic[T]):
    """Something that goes on beside what this thread does.

    Args:
        task: What to do.
        name: What its thread is called.
    """

    def __init__(self, task: Callable[[], T], *, name: str) -> None:
        self._outcome: Future[T] = Future()
        threading.Thread(target=self._run, args=(task,), name=name, daemon=True).start()

    def check(self) -> None:
        """Raises what it has raised, if it has."""
        if self._outcome.done():
            self._outcome.result()

    def result(self) -> T:
        """Waits for its result. Ctrl-C ends the wait."""
        wait_for(self._outcome)
        return self._outcome.result()

    def _run(self, task: Callable[[], T]) -> None:
        try:
            self._outcome.set_result(task())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            self._outcome.set_exception(error)


def run_all(
    tasks: Iterable[Callable[[], T]], *, threads: int, name: str, check: Callable[[], None] | None = None
) -> list[T]:
    """Performs all tasks and returns their results.

    Args:
        tasks: What to do; begun in this order.
        threads: How many run at a time, at most.
        name: What the threads are called, for people who look at them.
        check: Asked now and then; what it raises ends the wait at once, as Ctrl-C does.

    Raises:
        BaseException: What the first task to fail raised, or `check`.
    """
    following = iter(tasks)  # perhaps without end, as far as anybody knows before the first have run
    first = list(islice(following, threads))
    if len(first) <= 1 < threads and check is None:
        return [task() for task in first]
    crew = _Crew(chain(first, following))
    try:
        for number in range(len(first)):
            threading.Thread(target=crew.work, name=f"{name}-{number}", daemon=True).start()
        return crew.finish(len(first), check)
    except BaseException:  # Ctrl-C, which may come before the last thread has begun
        crew.call_off()
        raise


class _Crew(Generic[T]):
    """Threads at work on a list of tasks."""

    def __init__(self, tasks: Iterable[Callable[[], T]]) -> None:
        self._changed = threading.Condition()
        self._todo: Iterator[tuple[int, Callable[[], T]]] = iter(enumerate(tasks))
        self._results: dict[int, T] = {}
        self._failures: list[BaseException] = []
        self._left = 0

    def work(self) -> None:
        """What each thread does: one task after the other."""
        while (task := self._next()) is not None:
            try:
                result = task[1]()
            except BaseException as error:  # noqa: BLE001 - raised where the results are awaited
                with self._changed:
                    self._failures.append(error)
                    self._todo = iter(())
            else:
                with self._changed:
                    self._results[task[0]] = result
        with self._changed:
            self._left += 1
            self._changed.notify_all()

    def finish(self, threads: int, check: Callable[[], None] | None) -> list[T]:
        """Waits until all threads have left, and returns the results."""
        with self._changed:
            while self._left < threads:
                self._changed.wait(_GLANCE)
                if check is not None:
                    check()
        if self._failures:
            raise self._failures[0]
        return [self._results[number] for number in sorted(self._results)]

    def call_off(self) -> None:
        """Lets no further task begin."""
        with self._changed:
            self._todo = iter(())

    def _next(self) -> tuple[int, Callable[[], T]] | None:
        with self._changed:
            return next(self._todo, None)
