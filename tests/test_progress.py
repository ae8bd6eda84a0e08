"""Whoever listens is told, and disturbs nobody."""

import dataclasses
import threading

import pytest

from ckpt_remote.progress import Collected, FellBack, Repeated, Saved, emit, listen

SAVED = Saved(url="s3://bucket/run/ckpt-1", size=3, seconds=0.5, stall=0.5)
EVENTS = [
    SAVED,
    Repeated(error="busy", failures=1, pause=0.2),
    FellBack(damaged="s3://bucket/run/ckpt-2", error="damaged", tried_next=None),
    Collected(keys=("ckpt-1.index",)),
]


def test_a_listener_is_told_every_event_of_its_block_and_none_after():
    heard = []
    emit(SAVED)
    with listen(heard.append):
        for event in EVENTS:
            emit(event)
    emit(SAVED)

    assert EVENTS == heard


def test_a_listener_is_told_in_the_thread_where_it_happened():
    heard = []
    with listen(lambda event: heard.append(threading.current_thread())):
        thread = threading.Thread(target=emit, args=(SAVED,))
        thread.start()
        thread.join()

    assert [thread] == heard


def test_listeners_come_and_go_independently_even_the_same_one_twice():
    first, second = [], []
    with listen(first.append):
        with listen(second.append), listen(second.append):
            emit(EVENTS[0])
        emit(EVENTS[1])

    assert EVENTS[:2] == first
    assert [EVENTS[0]] * 2 == second


def test_a_block_that_fails_stops_listening_too():
    heard = []
    with pytest.raises(ZeroDivisionError), listen(heard.append):
        _ = 1 / 0
    emit(SAVED)

    assert [] == heard


def test_a_listener_that_fails_is_logged_and_disturbs_nobody(caplog):
    heard = []

    def fail(event):
        raise RuntimeError("broken listener")

    with listen(fail), listen(heard.append):
        emit(SAVED)

    assert [SAVED] == heard
    assert "broken listener" in caplog.text


def test_a_listener_may_stop_listening_while_it_is_told():
    heard, open_blocks = [], []

    def once(event):
        heard.append(event)
        open_blocks.pop().__exit__(None, None, None)

    block = listen(once)
    open_blocks.append(block)
    block.__enter__()
    emit(SAVED)
    emit(SAVED)

    assert [SAVED] == heard


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_are_values(event):
    assert event == dataclasses.replace(event)
    assert len({event, dataclasses.replace(event)}) == 1
    for field in dataclasses.fields(event):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, field.name, None)
