"""What people see of a long save: a bar in a terminal, lines in the log elsewhere, nothing of what is short."""

import io
import logging
import os
import threading

import pytest

from ckpt_remote import display
from ckpt_remote.display import Display
from ckpt_remote.progress import Entered, Failed, Moved, Repeated, Saved, emit

URL = "s3://bucket/run/ckpt-7"
BEGUN = Entered(url=URL, phase="write", size=4_000_000_000)
SAVED = Saved(url=URL, size=4_000_000_000, seconds=90.0, stall=90.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """One in which a bar is worth it at once."""
    monkeypatch.setattr(display, "_WORTH_A_BAR", 0.0)
    return Terminal()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def moved(size):
    return Moved(url=URL, phase="write", size=size)


def hear(shown, *events):
    for event in events:
        shown(event)


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "ckpt_remote.display"]


def test_elsewhere_than_in_a_terminal_a_line_in_the_log_says_every_half_minute_how_far_it_is(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    shown = Display(clock)
    hear(shown, BEGUN, moved(500_000_000))
    for second in range(10, 80, 10):
        clock.now = float(second)
        shown(moved(100_000_000))
    hear(shown, SAVED, moved(1))

    assert [
        f"saving {URL}: 0.80 of 4.00 GB, 27 MB/s",
        f"saving {URL}: 1.10 of 4.00 GB, 18 MB/s",
    ] == lines(caplog)


def test_in_a_terminal_there_is_a_bar_and_it_is_gone_at_the_end(terminal, caplog):
    caplog.set_level(logging.INFO)
    shown = Display(Clock(), terminal)
    hear(shown, BEGUN, Repeated(error="503", failures=2, pause=0.1), moved(2_000_000_000))
    assert f"saving {URL}:   0%" in terminal.getvalue()
    assert "/4.00G" in terminal.getvalue()
    shown(SAVED)

    assert "" == terminal.getvalue().rpartition("\r")[2].strip()
    assert "" == terminal.getvalue().split("\r")[-2].strip(), "the last thing drawn is nothing"
    assert [] == lines(caplog)


@pytest.mark.parametrize(
    "end", [SAVED, Failed(url=URL, action="save", error="because"), Entered(url=URL, phase="publish")]
)
def test_every_bar_ends(end, terminal):
    shown = Display(Clock(), terminal)
    hear(shown, BEGUN, end)
    drawn = terminal.getvalue()
    assert drawn
    hear(shown, moved(1), end)

    assert drawn == terminal.getvalue()


def test_what_is_over_in_a_second_is_not_shown():
    terminal = Terminal()
    hear(Display(terminal=terminal), BEGUN, moved(4_000_000_000), SAVED)

    assert "" == terminal.getvalue()


def test_behind_training_there_is_no_bar(terminal):
    shown = Display(Clock(), terminal)
    thread = threading.Thread(target=hear, args=(shown, BEGUN, moved(1), SAVED))
    thread.start()
    thread.join()

    assert "" == terminal.getvalue()


def test_several_checkpoints_at_a_time_are_told_apart(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    shown, other = Display(clock), "s3://bucket/run/ckpt-6"
    hear(shown, BEGUN, Entered(url=other, phase="fetch", size=1_000_000_000))
    clock.now = 40.0
    hear(shown, moved(1_000_000_000), Moved(url=other, phase="fetch", size=100_000_000))

    assert [f"saving {URL}: 1.00 of 4.00 GB, 25 MB/s", f"fetching {other}: 0.10 of 1.00 GB, 2 MB/s"] == lines(caplog)


def test_a_process_shows_everything_once_also_when_it_was_forked_in_the_middle(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(display, "_BETWEEN_LINES", 0.0)
    display.show()
    display.show()
    emit(BEGUN)
    emit(moved(1))
    assert 1 == len(lines(caplog))

    display._display._lock.acquire()  # as a thread does that the child has not
    child = os.fork()
    if child == 0:
        emit(moved(1))
        os._exit(0)
    assert (child, 0) == os.waitpid(child, 0)
    display._display._lock.release()
    emit(SAVED)
