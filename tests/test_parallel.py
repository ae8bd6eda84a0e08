"""Tasks run many at a time, the first failure is told, and nobody is held up."""

import subprocess
import sys
import threading
from functools import partial

import pytest

from ckpt_remote.parallel import run_all

PATIENCE = 30.0  # seconds until a test that hangs is told so


def crew():
    return [thread for thread in threading.enumerate() if thread.name.startswith("crew")]


def join(threads):
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("threads", [1, 2, 100])
def test_results_come_in_the_order_of_the_tasks_whoever_ends_first(threads):
    ended = [threading.Event() for _ in range(6)]

    def task(number):
        """With two threads or more, every second task ends after its follower."""
        if threads > 1 and number % 2 == 0:
            assert ended[number + 1].wait(PATIENCE)
        ended[number].set()
        return number

    assert [0, 1, 2, 3, 4, 5] == run_all([partial(task, n) for n in range(6)], threads=threads, name="crew")


def test_nothing_to_do_gives_nothing():
    assert [] == run_all([], threads=4, name="crew")


def test_one_task_needs_no_thread():
    assert [threading.current_thread()] == run_all([threading.current_thread], threads=4, name="crew")


@pytest.mark.parametrize("threads", [2, 5])
def test_as_many_run_at_a_time_as_it_is_told_and_no_more(threads):
    together, running, most, lock = threading.Barrier(threads), [], [], threading.Lock()

    def task():
        with lock:
            running.append(None)
            most.append(len(running))
        together.wait(PATIENCE)
        with lock:
            running.pop()

    run_all([task] * (3 * threads), threads=threads, name="crew")
    assert threads == max(most)


def test_the_threads_bear_the_name():
    names = run_all([lambda: threading.current_thread().name] * 2, threads=1, name="crew")

    assert ["crew-0", "crew-0"] == names


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_a_failure_is_raised_as_it_is(error, count):
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        run_all([fail] * count, threads=2, name="crew")
    assert error is caught.value


def test_a_failure_calls_off_what_has_not_begun_and_waits_for_what_has():
    failed, done, never = threading.Event(), [], []

    def fail():
        failed.set()
        raise ValueError("broken")

    def slow():
        assert failed.wait(PATIENCE)
        join([thread for thread in crew() if thread is not threading.current_thread()])  # so it is called off by now
        done.append("slow")

    with pytest.raises(ValueError, match="broken"):
        run_all([slow, fail, *[lambda: never.append(None)] * 9], threads=2, name="crew")
    assert ["slow"] == done
    assert [] == never
    join(crew())


def test_the_first_failure_is_the_one_that_is_told():
    failed = threading.Event()

    def first():
        failed.set()
        raise ValueError("first")

    def second():
        assert failed.wait(PATIENCE)
        join([thread for thread in crew() if thread is not threading.current_thread()])
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        run_all([second, first], threads=2, name="crew")


def test_no_thread_is_left_behind():
    run_all([int] * 50, threads=8, name="crew")

    join(crew())


INTERRUPTED = """
import signal, sys, threading
from ckpt_remote.parallel import run_all

begun, noticed, release, called = threading.Barrier(3), threading.Event(), threading.Event(), []

def notice(number, frame):
    if not noticed.is_set():
        noticed.set()
        raise KeyboardInterrupt

def held():
    begun.wait()
    release.wait()

def press():
    begun.wait()
    while True:  # again: Python may be just about to wait for a lock, and then sees the signal only at the next
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if noticed.wait(0.05):
            break

signal.signal(signal.SIGINT, notice)
threading.Thread(target=press, daemon=True).start()
try:
    run_all([held, held, *[lambda: called.append(None)] * 5], threads=2, name="crew")
except KeyboardInterrupt:
    print("interrupted")
crew = [thread for thread in threading.enumerate() if thread.name.startswith("crew")]
print(len(crew), "still at work")
if sys.argv[1] == "released":
    release.set()
    for thread in crew:
        thread.join()
    print(len(called), "begun after that")
"""


@pytest.mark.parametrize("end", ["released", "stuck"])
def test_ctrl_c_ends_the_wait_begins_nothing_more_and_keeps_no_process_alive(end):
    """The two tasks under way wait for the test, or for ever: the process exits all the same."""
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, end], capture_output=True, text=True, timeout=PATIENCE, check=True
    )

    after = ["0 begun after that"] if end == "released" else []
    assert ["interrupted", "2 still at work", *after] == run.stdout.splitlines()


def test_ctrl_c_while_the_threads_are_being_started_begins_nothing_more_either(monkeypatch):
    started, release, called = threading.Event(), threading.Event(), []
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        assert started.wait(PATIENCE)
        raise KeyboardInterrupt

    def held():
        started.set()
        assert release.wait(PATIENCE)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_all([held, *[lambda: called.append(None)] * 5], threads=2, name="crew")
    left = crew()
    release.set()
    join(left)

    assert (1, []) == (len(left), called)
