"""What goes on behind the caller's back ends, and what goes wrong in it is told once."""

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from functools import partial

import pytest

from ckpt_remote.background import Background


class OddError(Exception):
    """Raised by tasks."""


def fail():
    raise OddError("because")


def test_a_task_runs_while_the_caller_goes_on():
    begun, let = threading.Event(), threading.Event()
    background = Background("work")
    background.start(lambda: (begun.set(), let.wait()))

    assert begun.wait(10)
    assert background.is_busy
    let.set()
    background.wait()
    assert not background.is_busy
    background.raise_failure()


def test_a_failure_is_raised_once_and_shows_where_it_happened():
    background = Background("work")
    background.start(fail)
    background.wait()
    with pytest.raises(OddError) as raised:
        background.raise_failure()
    background.raise_failure()

    assert "fail" == raised.traceback[-1].name


def test_what_a_task_held_is_free_when_it_is_over_also_if_it_failed():
    class Held:
        pass

    def keep(held, failing):
        kept = held
        if failing:
            raise OddError(str(kept))

    for failing in (False, True):
        held = Held()
        gone = weakref.ref(held)
        background = Background("work")
        background.start(partial(keep, held, failing))
        del held
        background.wait()
        assert gone() is None
    with pytest.raises(OddError):
        background.raise_failure()


def test_a_failure_that_nobody_asks_for_is_logged_when_the_object_goes(caplog):
    background = Background("what this test does")
    background.start(fail)
    background.wait()
    del background
    gc.collect()  # of what other tests have left, too

    (record,) = [it for it in caplog.records if it.getMessage().startswith("what this test does")]
    assert logging.ERROR == record.levelno
    assert "what this test does has failed, and nobody has asked how: because" == record.getMessage()
    assert "in fail" in caplog.text


def test_a_task_cannot_wait_for_itself():
    background = Background("work")
    background.start(background.wait)
    while background.is_busy:
        pass
    with pytest.raises(RuntimeError, match="would wait for itself"):
        background.raise_failure()


def test_failures_are_raised_in_their_order_and_each_once():
    background = Background("work")
    for _ in range(2):
        background.start(fail)
        background.wait()
    for _ in range(2):
        assert background.has_failed
        with pytest.raises(OddError):
            background.raise_failure()
    background.raise_failure()
    assert not background.has_failed


def test_one_that_was_raised_is_not_logged(caplog):
    background = Background("work")
    background.start(fail)
    background.wait()
    with pytest.raises(OddError):
        background.raise_failure()
    del background
    gc.collect()

    assert not caplog.records


def run_to_the_end(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)


def test_the_interpreter_does_not_exit_before_a_task_has_ended_whatever_threads_it_starts():
    ended = run_to_the_end(
        "import time\n"
        "from ckpt_remote.background import Background\n"
        "from ckpt_remote.parallel import run_all\n"
        "def task():\n"
        "    time.sleep(0.3)\n"
        "    print(sum(run_all([lambda: 1, lambda: 2], threads=2, name='x')))\n"
        "background = Background('work')\n"
        "background.start(task)\n"
    )

    assert "3\n" == ended.stdout


def test_a_failure_that_comes_at_exit_is_shown():
    ended = run_to_the_end(
        "import time\n"
        "from ckpt_remote.background import Background\n"
        "def fail():\n"
        "    time.sleep(0.3)\n"
        "    raise ValueError('because')\n"
        "background = Background('work')\n"
        "background.start(fail)\n"
    )

    assert "work has failed, and nobody has asked how: because" in ended.stderr
    assert "ValueError: because" in ended.stderr


def test_a_forked_child_has_no_task():
    let = threading.Event()
    background = Background("work")
    background.start(let.wait)
    child = os.fork()
    if child == 0:
        background.wait()
        os._exit(7 if background.is_busy else 0)
    let.set()

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
