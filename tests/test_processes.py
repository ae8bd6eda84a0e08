"""Real processes that are killed, stopped, forked and interrupted: nothing is lost, nothing is left, nobody hangs.

`make test` kills twenty times, and `make soak` two hundred: CKPT_REMOTE_KILLS and CKPT_REMOTE_STOPS say how often.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, download, read_all
from support.stock import needed
from support.trainer import PARTS, SCENES, Job

from ckpt_remote import ConflictError, NotFoundError

KILLS = int(os.environ.get("CKPT_REMOTE_KILLS", "20"))
STOPS = int(os.environ.get("CKPT_REMOTE_STOPS", "25"))  # on each of two stores
PATIENCE = 60.0
pytestmark = pytest.mark.slow


class Trainer:
    """The process that forks the training ones; see `support.trainer`."""

    def __init__(self, process):
        self._process = process
        self._reports = queue.Queue()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def start(self, job, place, **order):
        """Starts a job, and returns its process id."""
        order = {"job": job, "url": place.url, "options": place.storage_options, **order}
        self._process.stdin.write(f"{json.dumps(order)}\n".encode())
        self._process.stdin.flush()
        return self.expect("started")["started"]

    def report(self):
        """The next report."""
        return self._reports.get(timeout=PATIENCE)

    def expect(self, kind):
        """The next report, which is of a certain kind."""
        report = self.report()
        assert kind in report, report
        return report

    def end(self):
        """What is reported until the job has ended."""
        reports = []
        while "ended" not in (report := self.report()):
            reports.append(report)
        return reports

    def close(self):
        """When the process has ended."""
        self._listener.join()

    def _listen(self):
        for line in self._process.stdout:
            self._reports.put(json.loads(line))


@pytest.fixture(scope="module")
def trainer():
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "support.trainer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        running = Trainer(process)
        try:
            yield running
            process.stdin.close()
            process.wait(timeout=PATIENCE)
        finally:
            process.kill()
            running.close()


@pytest.fixture(params=["ministack", "local"])
def disk_place(request, tmp_path):
    """Where several processes see the same."""
    if request.param == "local":
        return Place(str(tmp_path / "run"))
    server = request.getfixturevalue("ministack")
    return Place(f"s3://{server.new_bucket()}/run", server.storage_options)


def kind(place):
    return "S3" if place.url.startswith("s3://") else "local disk"


def copied(place, folder):
    """A plain copy, as any tool would make it, of a moment in which nothing changed."""
    store = place.store()
    while True:  # what a dead process had sent may land a moment later
        shutil.rmtree(folder, ignore_errors=True)
        before = {info.key for info in store.list()}, store.read("checkpoint")
        with contextlib.suppress(NotFoundError):
            copy = download(place, folder)
            if before == ({info.key for info in store.list()}, store.read("checkpoint")):
                return copy


def restored_by_tensorflow(folder):
    """The step in the newest checkpoint, if any, restored by plain TensorFlow and the same in every part."""
    path = tf.train.latest_checkpoint(folder)
    if path is None:
        return 0
    parts = [tf.Variable(np.zeros(1000, np.int64)) for _ in range(PARTS)]
    step = tf.Variable(0, dtype=tf.int64)
    tf.train.Checkpoint(parts=parts, step=step).restore(path).assert_existing_objects_matched()
    assert {int(step)} == {int(value) for part in parts for value in np.unique(part)}
    for listed in tf.train.get_checkpoint_state(folder).all_model_checkpoint_paths:
        tf.train.load_checkpoint(listed).get_tensor("step/.ATTRIBUTES/VARIABLE_VALUE")
    return int(step)


def uploads_under_way(place):
    bucket = place.url.removeprefix("s3://").partition("/")[0]
    options = place.storage_options
    client = fsspec.filesystem("s3", **options, skip_instance_cache=True)
    return client.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])


def check_clean(place, folder):
    """After a save by a new manager there is nothing but what it lists."""
    job = Job(place.url, place.storage_options)
    job.save()
    job.manager.close()
    copy = copied(place, folder)
    assert job.step == restored_by_tensorflow(copy)
    assert needed(copy) == read_all(place).keys()
    if place.url.startswith("s3://"):
        assert [] == uploads_under_way(place)


@pytest.mark.timeout(3600)
def test_a_training_that_is_killed_at_any_moment_goes_on_where_it_was(disk_place, trainer, tmp_path, capsys):
    chance = random.Random(3)
    start, saves, unanswered, known = time.monotonic(), 0, 0, 0
    for _ in range(KILLS):
        pid = trainer.start("train", disk_place)
        restored = trainer.expect("restored")["restored"]
        assert known <= restored <= known + 1, "the newest is the last that was found, or one that landed since"
        first = [trainer.expect("saved")] if chance.random() < 0.7 or not known else []
        time.sleep(chance.uniform(0.0, 0.15))  # no condition: the moment is to be any
        os.killpg(pid, signal.SIGKILL)
        acknowledged = max([restored, *(report["saved"] for report in (*first, *trainer.end()))])
        known = restored_by_tensorflow(copied(disk_place, tmp_path / "copy"))
        assert known in (acknowledged, acknowledged + 1)
        saves += acknowledged - restored
        unanswered += known > acknowledged
    check_clean(disk_place, tmp_path / "copy")
    with capsys.disabled():
        print(
            f"\n{kind(disk_place)}: {KILLS} kills among {saves} saves, {unanswered} of which landed without an answer; "
            f"TensorFlow restored each time; nothing was left; {time.monotonic() - start:.1f} s"
        )


def test_an_owner_that_slept_through_a_takeover_gets_a_conflict_and_changes_nothing(disk_place, trainer, capsys):
    """It stops itself in the middle of a save, before any of the requests up to the one that makes it visible."""
    chance = random.Random(4)
    before_visible = {}
    for scene in SCENES:
        trainer.start("count", Place.in_memory(), scene=scene)
        before_visible[scene] = trainer.end()[0]["before_visible"]
    refused = 0
    for number in range(STOPS):
        scene = list(SCENES)[number % len(SCENES)]
        place = Place(f"{disk_place.url}-{number}", disk_place.storage_options)
        pid = trainer.start("stop", place, scene=scene, request=chance.randint(0, before_visible[scene]))
        trainer.expect("stopped")
        owner = Job(place.url, place.storage_options)
        owner.save()
        taken_over = read_all(place)
        os.killpg(pid, signal.SIGCONT)
        assert [{"error": "ConflictError"}] == trainer.end()
        after = read_all(place)
        assert taken_over["checkpoint"] == after["checkpoint"]
        assert taken_over.items() <= after.items(), "something of the new owner's was changed"
        owner.save()
        owner.manager.close()
        refused += 1
    with capsys.disabled():
        print(f"\n{kind(disk_place)}: {refused} of {STOPS} sleepers got ConflictError, and the state is unchanged")


@pytest.mark.parametrize("landed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("scene", SCENES)
def test_ctrl_c_in_a_save_ends_it_and_the_next_save_works(scene, landed, disk_place, trainer, tmp_path):
    trainer.start("count", Place.in_memory(), scene=scene)
    requests = trainer.end()[0]["requests"]
    chance = random.Random(f"{scene}{landed}")
    for number in sorted(chance.sample(range(requests), 3)):
        place = Place(f"{disk_place.url}-{number}", disk_place.storage_options)
        trainer.start("interrupt", place, scene=scene, request=number, landed=landed)
        interrupted, saved = trainer.end()
        assert {"interrupted": True} == interrupted
        assert f"{place.url}/ckpt-" in saved["saved"]
        assert saved["step"] == restored_by_tensorflow(copied(place, tmp_path / "copy"))
        check_clean(place, tmp_path / "copy")


def test_a_forked_child_saves_or_is_told_why_not_and_its_parent_goes_on(disk_place, trainer):
    trainer.start("fork", disk_place)
    *reports, saved = trainer.end()
    told = {report["who"]: report["error"] for report in reports}

    if disk_place.url.startswith("s3://"):  # obstore's threads do not survive a fork
        assert {"child": "UnsupportedError", "parent": None} == told
    else:  # whoever claims the directory first
        assert {None, "ConflictError"} >= set(told.values())
        assert {"child", "parent"} == told.keys()
        assert None in told.values()
    assert saved["saved"].startswith(f"{disk_place.url}/ckpt-")


def save_elsewhere(url, options, answers):
    """What a spawned process does."""
    job = Job(url, options)
    answers.put((job.save(), job.step))


def test_a_spawned_process_saves_while_its_parent_has_a_manager(disk_place):
    parent = Job(disk_place.url, disk_place.storage_options)
    parent.save()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=save_elsewhere, args=(disk_place.url, disk_place.storage_options, answers))
    child.start()

    assert (f"{disk_place.url}/ckpt-2", 2) == answers.get(timeout=PATIENCE)
    child.join(PATIENCE)
    assert 0 == child.exitcode
    answers.close()
    answers.join_thread()
    child.close()
    with pytest.raises(ConflictError):
        parent.save()
    assert f"{disk_place.url}/ckpt-3" == Job(disk_place.url, disk_place.storage_options).save()


@pytest.fixture(params=["obstore", "s3fs", "local"])
def engine_place(request, tmp_path):
    """One place for each way in which the library talks to a store."""
    if request.param == "local":
        return Place(str(tmp_path / "run"))
    server = request.getfixturevalue("ministack")
    options = server.storage_options
    url = f"s3://{server.new_bucket()}/run"
    if request.param == "obstore":
        return Place(url, options)
    return Place(url, filesystem=fsspec.filesystem("s3", **options, skip_instance_cache=True))


def test_sixteen_threads_save_with_one_manager_each_its_own_checkpoint(engine_place):
    manager = engine_place.manager(tf.train.Checkpoint(value=tf.Variable(np.zeros(10))))
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda _: manager.save(), range(32), timeout=PATIENCE))

    assert sorted(f"{engine_place.url}/ckpt-{number}" for number in range(1, 33)) == sorted(paths)
    assert sorted(paths) == sorted(manager.checkpoints)
    assert f"{engine_place.url}/ckpt-33" == manager.save()


def test_a_save_and_a_restore_inside_a_running_event_loop(engine_place):
    value = tf.Variable(np.zeros(10))
    manager = engine_place.manager(tf.train.Checkpoint(value=value), max_to_keep=1)

    async def work():
        saved = [manager.save(), manager.save()]
        value.assign(np.ones(10))
        return [*saved, manager.restore_or_initialize()]

    paths = asyncio.run(asyncio.wait_for(work(), PATIENCE))

    assert [f"{engine_place.url}/ckpt-{number}" for number in (1, 2, 2)] == paths
    assert 0.0 == float(tf.reduce_sum(value))
    assert f"{engine_place.url}/ckpt-3" == manager.save()
