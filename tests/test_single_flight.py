"""One process fetches, the others wait and use what it fetched, whoever is killed at whatever moment."""

import contextlib
import hashlib
import os
import random
import tempfile
import time
from pathlib import Path

import pytest
from support.neighbours import Neighbourhood, fetch_job, fork_job

from ckpt_remote import single_flight, staging
from ckpt_remote.single_flight import fetch_once

ROUNDS = int(os.environ.get("CKPT_REMOTE_ROUNDS", "30"))
SIZE = 2**20
URL = "s3://bucket/run/ckpt-1"


@pytest.fixture
def hood(tmp_path):
    with Neighbourhood.founded(tmp_path) as hood:
        yield hood


def digest(content):
    return hashlib.sha256((content * SIZE)[: SIZE // 2] * 2).hexdigest()


@contextlib.contextmanager
def neighbours(hood, count, *arguments, content=b"a", job=fetch_job):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(hood.process(job, URL, content, *arguments)) for _ in range(count)]


def with_one_that_fetches(processes):
    """The one that fetches and those that wait for it."""
    said = {process: process.says()[0] for process in processes}
    assert ["fetching", *["waiting"] * (len(processes) - 1)] == sorted(said.values())
    (first,) = (process for process, word in said.items() if word == "fetching")
    return first, [process for process in processes if process is not first]


def test_one_fetches_and_the_others_get_the_same_copy(hood):
    with neighbours(hood, 4) as processes:
        first, others = with_one_that_fetches(processes)
        first.tell("go")
        copies = {process.expect("has") for process in (first, *others)}
        ((path, content),) = copies

        assert digest(b"a") == content
        assert hood.memory in Path(path).parents
        for process in processes:
            assert 0 == process.end()
    assert [] == hood.left()


def test_a_copy_is_this_users_alone_and_can_only_be_read(hood):
    with neighbours(hood, 1) as (only,):
        only.expect("fetching")
        only.tell("go")
        path = Path(only.expect("has")[0])

        assert 0o700 == path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777
        assert {0o400} == {file.stat().st_mode & 0o777 for file in path.iterdir()}


def test_a_copy_stays_until_the_last_one_lets_go_whoever_fetched_it(hood):
    with neighbours(hood, 3) as processes:
        first, others = with_one_that_fetches(processes)
        first.tell("go")
        path = Path(first.expect("has")[0])
        for process in others:
            process.expect("has")
        first.tell("drop")
        assert digest(b"a") == first.expect("kept")
        others[0].kill()
        others[1].tell("drop")
        assert digest(b"a") == others[1].expect("kept")
        others[1].end()

        assert not path.exists()
    assert [] == hood.left()


def test_where_there_is_no_memory_the_copy_is_on_disk_and_is_found_there(hood):
    with neighbours(Neighbourhood(hood.temporary, hood.memory / "none"), 2) as processes:
        first, (other,) = with_one_that_fetches(processes)
        first.tell("go")

        assert first.expect("has") == other.expect("has")
        assert [hood.temporary] == [path.parent for path in hood.temporary.glob("ckpt_remote-*")]


def test_when_the_one_that_fetches_is_killed_the_next_one_starts_afresh(hood):
    with neighbours(hood, 4) as processes:
        first, others = with_one_that_fetches(processes)
        for _ in range(2):
            first.kill()
            said = {}
            while "fetching" not in said.values():
                said = {process: process.says()[0] for process in others if not process.quiet()}
            (first,) = said
            others.remove(first)
        assert 1 == len(list(hood.memory.iterdir())), "what the killed ones began is gone"
        first.tell("go")

        assert digest(b"a") == first.expect("has")[1] == others[0].expect("has")[1]
        assert 0 == first.end() == others[0].end()
    assert [] == hood.left()


def test_when_all_are_killed_the_next_process_removes_what_they_left(hood):
    with neighbours(hood, 3) as processes:
        first, others = with_one_that_fetches(processes)
        for process in (*others, first):
            process.kill()
        assert 2 == len(hood.left()), "half a copy, and what they waited for"
        with neighbours(hood, 1, content=b"b") as (other,):
            other.expect("fetching")
            other.tell("go")
            path, _ = other.expect("has")
            assert [Path(path).parent.name] == hood.left()


def test_a_complete_copy_that_nobody_holds_is_not_trusted_but_removed(hood):
    with neighbours(hood, 1) as (dead,):
        dead.expect("fetching")
        dead.tell("go")
        copy, _ = dead.expect("has")
        dead.kill()
    (file,) = Path(copy).glob("one")
    file.chmod(0o600)
    file.write_bytes(b"as a power failure may leave it")
    with neighbours(hood, 1) as (next_one,):
        next_one.expect("fetching")
        next_one.tell("go")

        assert digest(b"a") == next_one.expect("has")[1]


def test_when_the_fetch_fails_each_of_the_others_tries_and_gets_its_own_error(hood):
    with neighbours(hood, 3) as processes:
        first, others = with_one_that_fetches(processes)
        first.tell("fail")
        assert "CorruptError" == first.expect("failed")
        for process in others:
            process.tell("fail")
        for process in others:
            process.expect("fetching")
            assert "CorruptError" == process.expect("failed")

        assert [] == hood.left()


def test_who_comes_when_the_next_one_tries_waits_for_that_one(hood):
    with neighbours(hood, 2) as processes:
        first, (second,) = with_one_that_fetches(processes)
        first.tell("fail")
        second.expect("fetching")
        with neighbours(hood, 1) as (third,):
            third.expect("waiting")
            second.tell("go")
            assert second.expect("has") == third.expect("has")


def test_different_things_do_not_wait_for_each_other_and_do_not_mix(hood):
    with neighbours(hood, 1, content=b"a") as (one,), neighbours(hood, 1, content=b"b") as (other,):
        for process in (one, other):
            process.expect("fetching")
        for process, content in ((one, b"a"), (other, b"b")):
            process.tell("go")
            assert digest(content) == process.expect("has")[1]


def test_ctrl_c_ends_the_wait_and_the_copy_is_still_everybody_elses(hood):
    with neighbours(hood, 3) as processes:
        first, (impatient, other) = with_one_that_fetches(processes)
        impatient.interrupt()
        impatient.expect("interrupted")
        first.tell("go")
        first.expect("has")
        other.expect("has")
        for process in (first, other):
            assert 0 == process.end()

        assert [] == hood.left(), "it has not got the lock that it waited for, although it lives"
        with neighbours(hood, 1) as (late,):
            late.expect("fetching")


@pytest.mark.parametrize("when", ["during", "after"])
def test_a_forked_child_neither_releases_nor_keeps_what_its_parent_holds(when, hood):
    with neighbours(hood, 1, when, job=fork_job) as (parent,):
        parent.expect("fetching")
        if when == "after":
            parent.tell("go")
            path, _ = parent.expect("has")
            assert Path(path).exists()
        parent.kill()
        with neighbours(hood, 1) as (heir,):
            heir.expect("fetching")
            heir.tell("go")
            path, _ = heir.expect("has")

            assert [Path(path).parent.name] == hood.left(), "nothing of the dead one's, whose child lives"


def test_a_late_one_finds_the_copy_for_a_while_and_at_the_end_of_the_process_it_is_gone(hood):
    patient = Neighbourhood(hood.temporary, hood.memory, grace=3600.0)
    with neighbours(patient, 1) as (first,):
        first.expect("fetching")
        first.tell("go")
        copy = first.expect("has")
        first.tell("drop")
        first.expect("kept")
        with neighbours(patient, 1) as (late,):
            assert copy == late.expect("has")
            late.end()
        assert Path(copy[0]).exists()
        first.end()
    assert [] == hood.left()


@pytest.fixture
def here(hood, monkeypatch):
    """This process is one of them."""
    monkeypatch.setattr(tempfile, "tempdir", str(hood.temporary))
    monkeypatch.setattr(staging, "_SHARED_MEMORY", hood.memory)
    monkeypatch.setattr(single_flight, "_GRACE", 0.05)
    return hood


def fill(kind):
    folder = kind()
    (folder.path / "file").write_bytes(b"content")
    return folder


def test_a_copy_goes_when_the_time_for_late_ones_is_over(here):
    folder = fetch_once(URL, b"", fill)
    ((timer, _),) = single_flight._kept
    folder.remove()
    timer.join()

    assert [] == here.left()


def test_a_process_holds_one_copy_for_late_ones_at_most(here, monkeypatch):
    monkeypatch.setattr(single_flight, "_GRACE", 3600.0)
    for number in range(3):
        fetch_once(URL, bytes([number]), fill).remove()
    (name,) = here.left()

    single_flight._let_go()
    assert [] == here.left(), name


def test_what_another_user_could_have_put_there_is_not_used(here, tmp_path):
    """A link in the place of the mutex, a folder that others may write to in the place of the copy."""
    names = []
    folder = fetch_once(URL, b"", lambda kind: names.append(here.left()) or fill(kind))
    mutex, copy = names[0][0], folder.path.parent.name
    folder.remove()
    single_flight._let_go()

    (here.temporary / mutex).symlink_to(tmp_path / "victim")
    folder = fetch_once(URL, b"", fill)
    assert copy != folder.path.parent.name, "it is private"
    assert not (tmp_path / "victim").exists()
    folder.remove()
    (here.temporary / mutex).unlink()

    (here.temporary / copy / "content").mkdir(parents=True)
    (here.temporary / copy / staging._LOCK).touch()
    (here.temporary / copy).chmod(0o777)
    folder = fetch_once(URL, b"", fill)
    assert copy != folder.path.parent.name
    assert b"content" == (folder.path / "file").read_bytes()
    folder.remove()


def test_two_threads_of_one_process_share_a_copy_too(here):
    first = fetch_once(URL, b"", fill)
    second = fetch_once(URL, b"", lambda kind: pytest.fail("it is there"))
    first.remove()

    assert b"content" == (second.path / "file").read_bytes()
    second.remove()


@pytest.mark.slow
def test_whoever_starts_and_is_killed_when_ever_the_living_have_what_they_want_and_nothing_is_left(hood, capsys):
    chance = random.Random(14)
    start, killed, served = time.monotonic(), 0, 0
    for _ in range(ROUNDS):
        with contextlib.ExitStack() as stack:
            living, wanted = [], {}
            for _ in range(chance.randint(2, 5)):
                content = chance.choice([b"a", b"a", b"b"])
                process = stack.enter_context(hood.process(fetch_job, URL, content, SIZE))
                living.append(process)
                wanted[process] = content
                process.tell("go")
            for process in list(living):
                if chance.random() < 0.4:
                    time.sleep(chance.uniform(0.0, 0.02))  # no condition: the moment is to be any
                    process.kill()
                    living.remove(process)
                    killed += 1
            chance.shuffle(living)
            for process in living:
                word, what = process.says()
                while word != "has":
                    assert word in {"fetching", "waiting"}, (word, what)
                    word, what = process.says()
                assert digest(wanted[process]) == what[1]
                if chance.random() < 0.5:
                    process.tell("drop")
                    assert digest(wanted[process]) == process.expect("kept")
                served += 1
            for process in living:
                assert 0 == process.end()
    with neighbours(hood, 1) as (last,):
        last.expect("fetching")
        last.tell("go")
        path, _ = last.expect("has")
        assert [Path(path).parent.name] == hood.left()
    with capsys.disabled():
        print(f"\n{ROUNDS} rounds: {served} served, {killed} killed, in {time.monotonic() - start:.1f} s")
