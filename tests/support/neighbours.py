"""Processes of one user on one host that want the same thing at the same time.

    hood = Neighbourhood(tmp_path, memory)          the temporary directory, and the memory, that they have in common
    with hood.process(fetch_job, ...) as one:       a real process; TensorFlow is imported once, before it is forked off
        one.expect("fetching"); one.tell("go"); one.kill()

Promises: what a process says arrives in order; none outlives its `with` block; a process whose test has died ends.
It says nothing of how long anything takes: tests wait for what a process says.
"""

import contextlib
import fcntl
import hashlib
import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckpt_remote import CheckpointError, CorruptError, single_flight, staging
from ckpt_remote.single_flight import SharedFolder, fetch_once

__all__ = ["Neighbour", "Neighbourhood", "fetch_job", "fork_job", "restore_job"]

PATIENCE = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tensorflow", "ckpt_remote.checkpoint", __name__])


class Neighbour:
    """A process, and what it says."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.process = process
        self._pipe = pipe

    def says(self) -> tuple[str, Any]:
        """The next thing it says, and what about it."""
        assert self._pipe.poll(PATIENCE), "it says nothing"
        said: tuple[str, Any] = self._pipe.recv()
        return said

    def expect(self, word: str) -> Any:
        """What it says about `word`, which is the next thing it speaks of."""
        said, what = self.says()
        assert word == said, (said, what)
        return what

    def quiet(self) -> bool:
        """Whether it has said nothing yet."""
        return not self._pipe.poll()

    def tell(self, order: str) -> None:
        """Gives it an order."""
        with contextlib.suppress(ConnectionError):  # somebody has killed it
            self._pipe.send(order)

    def kill(self) -> None:
        """Kills it, and returns when it is dead, and its locks are free."""
        self.process.kill()
        self.process.join(PATIENCE)

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        """Lets it end by itself, and returns its status."""
        self._pipe.close()
        self.process.join(PATIENCE)
        return int(self.process.exitcode)


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What the processes have in common: the temporary directory, memory, and for how long a copy waits for others."""

    temporary: Path
    memory: Path
    grace: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def founded(cls, folder: Path) -> "Iterator[Neighbourhood]":
        """One whose places nobody else has, below `folder` and in memory, if the system has any."""
        temporary = folder / "temporary"
        temporary.mkdir()
        system = staging._SHARED_MEMORY
        with tempfile.TemporaryDirectory(prefix="test-", dir=system if system.is_dir() else folder) as memory:
            yield cls(temporary, Path(memory))

    @contextlib.contextmanager
    def process(self, job: Callable[..., None], *arguments: Any) -> Iterator[Neighbour]:
        """A process that carries out a job."""
        ours, its = _context.Pipe()
        process = _context.Process(target=_live, args=(self, its, job, arguments), daemon=True)
        process.start()
        its.close()
        try:
            yield Neighbour(process, ours)
        finally:
            process.kill()
            process.join(PATIENCE)
            ours.close()
            process.close()

    def settle(self) -> None:
        """Makes this process one of them."""
        tempfile.tempdir = str(self.temporary)
        staging._SHARED_MEMORY = self.memory
        single_flight._GRACE = self.grace

    def left(self) -> list[str]:
        """What is in both places, without what is only the tests'."""
        return sorted(
            path.name
            for place in (self.temporary, self.memory)
            for path in place.iterdir()
            if path.name.startswith("ckpt_remote-")
        )


def _live(hood: Neighbourhood, pipe: Connection, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell has put us in the background
    hood.settle()
    log = logging.getLogger("ckpt_remote.single_flight")
    log.setLevel(logging.INFO)
    log.addHandler(_Waiting(pipe))
    with contextlib.suppress(EOFError, ConnectionError):  # told to end
        job(pipe, *arguments)


class _Waiting(logging.Handler):
    """Says when the process is about to wait for another one."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        if "waiting" in record.msg:
            self._pipe.send(("waiting", None))


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


def fetch_job(pipe: Connection, url: str, content: bytes, size: int = 2**20, *, ask: bool = True) -> None:
    """Fetches `size` bytes that are `content` over and over, in two halves; asks between them.

    Says: fetching, waiting, has (a digest), failed (the error's name), interrupted, and in the end kept (a digest).
    """

    def fetch(kind: type[SharedFolder]) -> SharedFolder:
        folder = kind(staging.memory_directory(size))
        half = (content * size)[: size // 2]
        # Two at a time would be two fetches; the kernel drops the lock of one who is killed.
        with (Path(tempfile.gettempdir()) / f"busy-{content.hex()}").open("w") as busy:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder.path / "one").write_bytes(half)
            pipe.send(("fetching", None))
            if ask and pipe.recv() == "fail":
                folder.remove()
                raise CorruptError("as it was told")
            (folder.path / "two").write_bytes(half)
        return folder

    try:
        folder = fetch_once(url, content, fetch)
    except CheckpointError as error:
        pipe.send(("failed", type(error).__name__))
    except KeyboardInterrupt:
        pipe.send(("interrupted", None))
    else:
        pipe.send(("has", (str(folder.path), _digest(folder.path))))
        with contextlib.suppress(EOFError, ConnectionError):
            pipe.recv()
        with contextlib.suppress(ConnectionError):
            pipe.send(("kept", _digest(folder.path)))
        folder.remove()
    pipe.recv()


def fork_job(pipe: Connection, url: str, content: bytes, when: str) -> None:
    """As `fetch_job`; forks a child that lives on, `during` the fetch or `after` it."""

    def fork() -> None:
        child, its = os.pipe()
        if not os.fork():
            signal.alarm(int(PATIENCE))
            os.close(child)
            os.write(its, b"alive")
            signal.pause()
        os.close(its)
        os.read(child, 5)

    def fetch(kind: type[SharedFolder]) -> SharedFolder:
        folder = kind()
        (folder.path / "one").write_bytes(content)
        if when == "during":
            fork()
        pipe.send(("fetching", None))
        pipe.recv()
        return folder

    folder = fetch_once(url, content, fetch)
    if when == "after":
        fork()
        if not os.fork():  # one that ends, too, with all that ends a process of Python
            raise SystemExit
        os.wait()
    pipe.send(("has", (str(folder.path), _digest(folder.path))))
    pipe.recv()


def restore_job(pipe: Connection, url: str, options: Any, names: tuple[str, ...], later: tuple[str, ...] = ()) -> None:
    """Restores variables from `url`, and more of them when it is asked to.

    Says: ready, waiting, has (a digest of each variable), failed (the error's name and message), later (digests).
    """
    import tensorflow as tf

    from ckpt_remote import checkpoint
    from ckpt_remote.store import open_store, split_url

    checkpoint_ = tf.train.Checkpoint(**{name: tf.Variable(tf.zeros([0]), shape=[None]) for name in names})
    directory, prefix = split_url(url)

    def values(which: tuple[str, ...]) -> dict[str, str]:
        return {name: hashlib.sha256(getattr(checkpoint_, name).numpy().tobytes()).hexdigest() for name in which}

    with open_store(directory, options, None) as store:
        pipe.send(("ready", None))
        pipe.recv()
        try:
            status = checkpoint.restore(checkpoint_, store, prefix, None, shared=True)
        except CheckpointError as error:
            pipe.send(("failed", (type(error).__name__, str(error))))
            pipe.recv()
            return
        status.assert_existing_objects_matched()
        pipe.send(("has", values(names)))
        pipe.recv()
        for name in later:
            setattr(checkpoint_, name, tf.Variable(tf.zeros([0]), shape=[None]))
        pipe.send(("later", values(later)))
        pipe.recv()
