"""Real processes that form a TensorFlow cluster on this machine: chiefs, workers, parameter servers.

    with Cluster(chief=1, worker=2, ps=2) as cluster:
        cluster.start("ps", "worker")                 each a process that serves
        chief = cluster.run("chief")                  one that waits for calls
        chief.call(function, argument)                runs there; what it returns or raises comes back
        cluster["ps", 1].kill()

Every process has its own `TF_CONFIG`, its own working directory and a temporary directory below that: one and the
same path, /proc/self/cwd/tmp, that leads each to another folder. So no task sees the files of another, as on machines
of their own. TensorFlow is imported once, in the process that the others are forked from.

TensorFlow's servers listen on all addresses of the machine; there is no way to tell them not to.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import traceback
from pathlib import Path

__all__ = ["Cluster", "RemoteError", "Task"]

PATIENCE = 120
_TEMPORARY = "/proc/self/cwd/tmp"
# Below the ports that systems hand out by themselves, so that no connection takes one before its server does.
_PORTS = range(20000, 30000)
_servers = []  # of this process; they have no end but its own


class RemoteError(Exception):
    """What a call raised in another process.

    Args:
        names: The names of the error's class and of all that it derives from.
        message: What it says.
        trace: Where it happened.
    """

    def __init__(self, names, message, trace):
        super().__init__(message)
        self.names = names
        self.message = message
        self.trace = trace

    def __str__(self):
        return f"{self.names[0]}: {self.message}\n{self.trace}"


class Task:
    """One process of a cluster."""

    def __init__(self, process, connection, folder):
        self._process = process
        self._connection = connection
        self.folder = folder

    @property
    def pid(self):
        return self._process.pid

    def send(self, function, *arguments):
        """Begins a call of a function of an importable module."""
        self._connection.send((function, arguments))

    def is_done(self, within):
        """Whether the call that was begun has ended, after so many seconds at most."""
        return self._connection.poll(within)

    def result(self):
        """Waits for what the call that was begun returns."""
        if not self.is_done(PATIENCE):
            raise TimeoutError(f"no answer from {self.folder.name} within {PATIENCE} s")
        passed, result = self._connection.recv()
        if not passed:
            raise RemoteError(*result)
        return result

    def call(self, function, *arguments):
        """Calls a function there."""
        self.send(function, *arguments)
        return self.result()

    def fileno(self):
        """What becomes readable when there is a result."""
        return self._connection.fileno()

    def wait(self):
        """Waits until the process has ended by itself, and returns its status."""
        self._process.join(PATIENCE)
        return self._process.exitcode

    def kill(self):
        """Ends the process as a power cut would, and waits until it is gone."""
        self._process.kill()
        self._process.join()
        self._connection.close()


class Cluster:
    """Tasks that know of each other.

    Args:
        sizes: How many tasks there are of each kind.
    """

    def __init__(self, **sizes):
        ports = iter(_free_ports(sum(sizes.values())))
        self.addresses = {kind: [f"127.0.0.1:{next(ports)}" for _ in range(size)] for kind, size in sizes.items()}
        self._tasks = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *exception):
        for task in self._tasks.values():
            task.kill()
        self._stack.close()

    def __getitem__(self, task):
        return self._tasks[task]

    def run(self, kind, index=0):
        """Starts the process of a task, which waits for calls; that of the same task before is gone."""
        if (kind, index) in self._tasks:
            self._tasks.pop((kind, index)).kill()
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-{index}-", dir=self._folder))
        (folder / "tmp").mkdir()
        config = {"cluster": self.addresses, "task": {"type": kind, "index": index}}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tensorflow"])
        ours, theirs = context.Pipe()
        process = context.Process(target=_carry_out, args=(theirs, str(folder), json.dumps(config)), daemon=True)
        process.start()
        theirs.close()
        self._tasks[kind, index] = Task(process, ours, folder)
        return self._tasks[kind, index]

    def start(self, *kinds):
        """Starts servers for all tasks of these kinds."""
        for kind in kinds:
            for index in range(len(self.addresses[kind])):
                self.run(kind, index).send(serve)
        for kind in kinds:
            for index in range(len(self.addresses[kind])):
                self[kind, index].result()


def serve():
    """Becomes the server of this process's task."""
    import tensorflow as tf

    config = json.loads(os.environ["TF_CONFIG"])
    task = config["task"]
    server = tf.distribute.Server(config["cluster"], job_name=task["type"], task_index=task["index"], protocol="grpc")
    _servers.append(server)


def _carry_out(connection, folder, config):
    os.chdir(folder)
    os.environ.update(TF_CONFIG=config, TMPDIR=_TEMPORARY, CUDA_VISIBLE_DEVICES="-1")
    tempfile.tempdir = None  # as of the process that forked us
    signal.alarm(4 * PATIENCE)  # none outlives its test for long
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = connection.recv()
            try:
                answer = True, function(*arguments)
            except Exception as error:  # noqa: BLE001 - raised where the call was made
                names = [kind.__name__ for kind in type(error).__mro__]
                answer = False, (names, str(error), traceback.format_exc())
            connection.send(answer)


def _free_ports(count):
    found = set()
    while len(found) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return found
