"""Processes that train, to be killed, stopped and interrupted by tests.

    python -m support.trainer        reads one order a line, forks a child that carries it out, and waits for its end

TensorFlow is imported once, and used only in the children, so that a child starts at once. Each leads a process group
of its own, and ends by itself after some minutes, so that none outlives its test for long. Both ways, JSON::

    {"job": "train", "url": …, "options": …}          saves without end, and reports each {"saved": step}
    {…, "job": "count", "scene": "first"}                      reports how many requests the save of that scene makes
    {…, "job": "stop", "scene": "first", "request": 7}         stops itself before that request of a save
    {…, "job": "interrupt", "scene": "first", "request": 7}    sends itself Ctrl-C there, and saves once more
    {…, "job": "fork"}                                saves, forks, and both save

Around what a job reports come {"started": pid}, {"stopped": pid} and {"ended": status}.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

import ckpt_remote
from ckpt_remote import manager
from ckpt_remote.store import open_store
from support.watched import Asked, Hand, repeated

__all__ = ["PARTS", "SCENES", "Job", "main"]

PARTS = 5
_SECONDS = 300
_SIZE = 1000
# What a job is doing when something happens to it: after so many saves, one under a new number or the last one's again.
SCENES = {"first": 0, "steady": 3, "again": 3}


class Job:
    """A process's training.

    Args:
        url: Where to save.
        options: The store's options.
        hand: Sees each request of the save of a scene.
    """

    def __init__(self, url: str, options: Any, hand: Hand | None = None) -> None:
        self._hand: Any = hand
        self._armed = False
        self._parts = [tf.Variable(np.zeros(_SIZE, np.int64)) for _ in range(PARTS)]
        self._step = tf.Variable(0, dtype=tf.int64)
        if hand is not None:
            manager.open_store = lambda *arguments: repeated(open_store(*arguments), self._switch)
        self.manager = ckpt_remote.CheckpointManager(
            tf.train.Checkpoint(parts=self._parts, step=self._step), url, 2, storage_options=options
        )
        self.manager.restore_or_initialize()

    @property
    def step(self) -> int:
        """The step that was saved or restored last."""
        return int(self._step)

    def save(self, *, again: bool = False) -> str:
        """Makes a step and saves it, with a data object for each part."""
        self._step.assign_add(1)
        for part in self._parts:
            part.assign(tf.fill([_SIZE], self._step))
        policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=_SIZE * 8 + 100)
        options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
        number = int(self.manager.checkpoint.save_counter) if again else None
        path: str = self.manager.save(number, options=options)
        return path

    def play(self, scene: str) -> str:
        """Brings a scene up to its save, and makes it through the hand."""
        for _ in range(SCENES[scene]):
            self.save()
        self._armed = True
        try:
            return self.save(again=scene == "again")
        finally:
            self._armed = False

    def _switch(self, asked: Asked, perform: Callable[[], Any]) -> Any:
        return self._hand(asked, perform) if self._armed else perform()


def _tell(**report: Any) -> None:
    os.write(1, f"{json.dumps(report)}\n".encode())  # one write, so that reports of two processes do not mix


def _at(request: int, act: Callable[[], None], *, landed: bool = False) -> Hand:
    """A hand that acts just before the request of that number, or just after."""
    numbers: Iterator[int] = iter(range(sys.maxsize))

    def hand(asked: Asked, perform: Callable[[], Any]) -> Any:
        is_it = next(numbers) == request
        if is_it and not landed:
            act()
        answer = perform()
        if is_it and landed:
            act()
        return answer

    return hand


def _signal(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _train(url: str, options: Any) -> None:
    job = Job(url, options)
    _tell(restored=job.step)
    while True:
        job.save()
        _tell(saved=job.step)


def _count(url: str, options: Any, scene: str) -> None:
    """How many requests the save of a scene makes before the one that makes it visible, and in all."""
    seen: list[Asked] = []

    def hand(asked: Asked, perform: Callable[[], Any]) -> Any:
        seen.append(asked)
        return perform()

    Job(url, options, hand).play(scene)
    visible = max(number for number, asked in enumerate(seen) if asked.writes and asked.keys == ("checkpoint",))
    _tell(before_visible=visible, requests=len(seen))


def _stop(url: str, options: Any, scene: str, request: int) -> None:
    job = Job(url, options, _at(request, _signal(signal.SIGSTOP)))
    try:
        job.play(scene)
    except ckpt_remote.CheckpointError as error:
        _tell(error=type(error).__name__)
    else:
        _tell(error=None)


def _interrupt(url: str, options: Any, scene: str, request: int, *, landed: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell has put us in the background
    job = Job(url, options, _at(request, _signal(signal.SIGINT), landed=landed))
    try:
        job.play(scene)
    except KeyboardInterrupt:
        _tell(interrupted=True)
    _tell(saved=job.save(), step=job.step)


def _fork(url: str, options: Any) -> None:
    job = Job(url, options)
    job.save()
    child = os.fork()
    try:
        job.save()
    except ckpt_remote.CheckpointError as error:
        _tell(who="parent" if child else "child", error=type(error).__name__)
    else:
        _tell(who="parent" if child else "child", error=None)
    if child:
        os.waitpid(child, 0)
        _tell(saved=Job(url, options).save())


_JOBS: dict[str, Callable[..., None]] = {
    "train": _train, "count": _count, "stop": _stop, "interrupt": _interrupt, "fork": _fork,
}  # fmt: skip


def _carry_out(order: dict[str, Any]) -> int:
    """Forks the child, and returns its status when it has ended."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            signal.alarm(_SECONDS)
            _JOBS[order.pop("job")](**order)
            status = 0
        except BaseException:  # noqa: BLE001 - nothing else would say it: the child must not get into the parent's loop
            traceback.print_exc()
        finally:
            os._exit(status)
    _tell(started=child)
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return status
        _tell(stopped=child)


def main() -> None:
    """Carries out orders until standard input ends."""
    for line in sys.stdin:
        _tell(ended=_carry_out(json.loads(line)))


if __name__ == "__main__":
    main()
