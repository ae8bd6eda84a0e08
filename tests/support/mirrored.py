"""Workers that train one model together under `MultiWorkerMirroredStrategy`, as the test sees them.

    with training(4) as workers:
        workers.values("train", 3)                   what all return, by rank
        workers.all("save")                          Done(value, seconds) or Failed(…), of each
        workers.save_but_kill(2, moment)             the answers of the others, once worker 2 was killed there

What they do is in `support.mirrored_training`. Promises: an answer is waited for a minute or two at most; nobody is
alive when the block ends.
"""

import contextlib
import os
import select
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from support import mirrored_training
from support.cluster import PATIENCE, Cluster, Task
from support.mirrored_training import Answer, Done, Moment

__all__ = ["Workers", "training"]


class Workers(list[Task]):
    """The workers, by rank."""

    def all(self, job: str, *arguments: Any) -> list[Answer]:
        """Has all do the same."""
        return self.each(job, [arguments] * len(self))

    def each(self, job: str, arguments: Sequence[Sequence[Any]]) -> list[Answer]:
        """Has each do it with arguments of its own."""
        for worker, own in zip(self, arguments, strict=True):
            worker.send(mirrored_training.perform, job, *own)
        return [worker.result() for worker in self]

    def values(self, job: str, *arguments: Any) -> list[Any]:
        """What all return; an error of any is the test's."""
        answers = self.all(job, *arguments)
        assert all(isinstance(answer, Done) for answer in answers), answers
        return [answer.value for answer in answers if isinstance(answer, Done)]

    def one(self, rank: int, job: str, *arguments: Any) -> Any:
        """What one returns."""
        answer = self[rank].call(mirrored_training.perform, job, *arguments)
        assert isinstance(answer, Done), answer
        return answer.value

    def until_they_train(self, job: str, *arguments: Any) -> None:
        """Has all begin a job that does not end, and waits until each has said that it has begun."""
        with _calls(len(self)) as calls:
            for worker, call in zip(self, calls, strict=True):
                worker.send(mirrored_training.perform, job, *arguments, call.path)
            for worker, call in zip(self, calls, strict=True):
                call.wait(worker)

    def save_but_kill(self, rank: int, moment: Moment) -> list[Answer]:
        """Has all save, kills one when it is at a moment, and returns the others' answers."""
        others = [worker for number, worker in enumerate(self) if number != rank]
        with _calls(1) as (call,):
            for worker in others:
                worker.send(mirrored_training.perform, "save")
            self[rank].send(mirrored_training.perform, "save", moment, call.path)
            call.wait(self[rank])
        self[rank].kill()
        return [worker.result() for worker in others]


@contextlib.contextmanager
def training(size: int, **arguments: Any) -> Iterator[Workers]:
    """Starts so many workers; the arguments are those of `Training`."""
    with Cluster(worker=size) as cluster:
        workers = Workers(cluster.run("worker", index) for index in range(size))
        for worker in workers:
            worker.send(mirrored_training.begin, arguments)
        for worker in workers:
            worker.result()
        yield workers


@dataclass(frozen=True, slots=True)
class _Call:
    """A named pipe through which a worker says, before its job has ended, that it has come to some point."""

    path: str
    end: int

    def wait(self, worker: Task) -> None:
        """Waits until it has; one that has an answer instead never will."""
        ready, _, _ = select.select([self.end, worker], [], [], PATIENCE)
        assert self.end in ready, worker.result() if ready else "the worker has not come to that point"


@contextlib.contextmanager
def _calls(count: int) -> Iterator[list[_Call]]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        calls = []
        for number in range(count):
            path = f"{folder}/{number}"
            os.mkfifo(path)
            calls.append(_Call(path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)))
            stack.callback(os.close, calls[-1].end)
        yield calls
