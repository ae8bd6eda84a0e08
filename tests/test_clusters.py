"""Real clusters: processes under `MultiWorkerMirroredStrategy` save together, fail together, and resume together.

What is checked of the protocol alone, without processes, is in test_crews.py.
"""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.mirrored import training
from support.mirrored_training import SHAPES, KerasNet, Moment
from support.places import Place, download, read_all
from support.proxy import proxy
from support.stock import contents, needed

from ckpt_remote import StoreError
from ckpt_remote.probe import PLAN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MODEL = sum(4 * rows * columns for rows, columns in SHAPES)  # the rest is a few hundred bytes
TIMEOUT = 4.0


@pytest.fixture(scope="module")
def four():
    with training(4) as workers:
        yield workers


@pytest.fixture(scope="module")
def two():
    with training(2) as workers:
        yield workers


@pytest.fixture(params=["four on ministack", "two on a local disk"])
def crew(request, tmp_path):
    """Workers that have a directory of their own for this test, and where that is."""
    size, _, store = request.param.partition(" on ")
    place = Place(str(tmp_path / "run")) if store == "a local disk" else on(request.getfixturevalue("ministack"))
    workers = request.getfixturevalue(size)
    workers.values("open", place.url, place.storage_options)
    return workers, place


def on(server, endpoint=None):
    options = {**server.storage_options, "endpoint_url": endpoint or server.endpoint}
    return Place(f"s3://{server.new_bucket()}/run", options)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(value, right[key], err_msg=key)


def step_in(folder):
    """The step of the newest checkpoint, restored by plain TensorFlow into a process without a strategy."""
    step = tf.Variable(0, dtype=tf.int64)
    layers = [tf.Variable(tf.zeros(shape)) for shape in SHAPES]
    checkpoint = tf.train.Checkpoint(net=tf.train.Checkpoint(step=step, layers=layers))
    checkpoint.restore(tf.train.latest_checkpoint(folder)).assert_existing_objects_matched().expect_partial()
    return int(step)


def test_all_workers_get_the_same_path_and_the_checkpoint_holds_what_tensorflow_would_save(crew, tmp_path):
    workers, place = crew
    step = workers.values("train", 2)[0]
    first = workers.values("save_by_step")
    workers.values("train", 1)
    second = workers.values("save_by_step")
    references = workers.values("write", str(tmp_path / "reference"))
    copy = download(place, tmp_path / "copy")

    assert [f"{place.url}/ckpt-{step}"] * len(workers) == first
    assert [f"{place.url}/ckpt-{step + 1}"] * len(workers) == second
    assert [[first[0], second[0]]] * len(workers) == workers.values("listed")
    for reference in references:
        assert_same(contents(reference), contents(tf.train.latest_checkpoint(copy)))
    assert step + 1 == step_in(copy)
    assert needed(copy) == read_all(place).keys()


def test_what_workers_count_by_themselves_is_added_up_or_averaged(crew, tmp_path):
    workers, place = crew
    before = workers.values("save")[0]
    workers.values("train", 1)
    workers.values("save")
    copy = download(place, tmp_path / "copy")
    value = "net/{}/.ATTRIBUTES/VARIABLE_VALUE".format
    old, new = (contents(path) for path in (f"{copy}/{Path(before).name}", tf.train.latest_checkpoint(copy)))
    ranks = np.arange(len(workers))

    assert np.sum(4.0 + ranks) == new[value("seen")] - old[value("seen")]
    np.testing.assert_allclose(new[value("mean")], np.mean(0.1 * (1 + ranks)) * np.array([1, 2, 3]), rtol=1e-5)


def test_every_byte_is_uploaded_once_in_level_shares(four, ministack):
    with proxy(ministack.endpoint) as between:
        place = on(ministack, between.endpoint)
        four.values("open", place.url, place.storage_options)
        four.values("save")
        bodies = {}
        for passage in between.log:
            if passage.arrival.method == "PUT":
                bodies.setdefault(passage.arrival.path, []).append(int(passage.arrival.headers["content-length"]))
    shares = [sizes for path, sizes in bodies.items() if ".data-" in path]
    everything = sum(sum(sizes) for sizes in bodies.values())

    assert [1] * 4 == [len(sizes) for sizes in shares]
    assert max(shares)[0] / min(shares)[0] <= 1.1
    assert everything < MODEL * 1.05


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreError("The store refuses this worker."), ("StoreError", "The store refuses this worker.")),
        (RuntimeError("This broke."), ("IncompleteError", "RuntimeError")),
    ],
    ids=["refused", "broken"],
)
@pytest.mark.parametrize("rank", [0, -1], ids=["the leader", "another"])
def test_a_worker_that_fails_says_so_and_all_raise_at_once(crew, rank, error, told, tmp_path):
    workers, place = crew
    workers.values("save")
    before = read_all(place)
    orders = [()] * len(workers)
    orders[rank] = (Moment("put", "ckpt-", error),)
    answers = workers.each("save", orders)

    failed = answers.pop(rank)
    assert (type(error).__name__, True) == (failed.kind, failed.seconds < 5.0)
    kind, text = told
    for answer in answers:
        assert (kind, True) == (answer.kind, answer.seconds < 5.0)
        assert text in answer.message
        assert rank == 0 or f"Worker {len(workers) - 1}: " in answer.message
    assert before.items() <= read_all(place).items()
    workers.values("train", 1)
    assert len(set(workers.values("save"))) == 1
    assert needed(download(place, tmp_path / "copy")) == read_all(place).keys()


def test_different_values_under_one_name_are_an_error_on_all_that_names_both_workers(crew):
    workers, place = crew
    published = workers.values("save")
    before = read_all(place)
    workers.one(1, "drift", 0.5)
    answers = workers.all("save")

    for answer in answers:
        assert "ValueError" == answer.kind
        assert "workers 0 and 1" in answer.message
        assert "plain" in answer.message
    assert before["checkpoint"] == read_all(place)["checkpoint"]
    assert [[path] for path in published] == workers.values("listed")
    workers.one(1, "drift", 0.0)
    assert len(set(workers.values("save"))) == 1


def test_what_is_each_workers_own_is_all_in_the_checkpoint_and_each_gets_its_own_back(ministack, tmp_path):
    place = on(ministack)
    with training(3, own=True) as workers:
        workers.values("open", place.url, place.storage_options)
        workers.each("advance", [(1 + rank,) for rank in range(3)])
        workers.values("save")
        saved = workers.values("own")
    with training(3, own=True) as workers:
        workers.values("open", place.url, place.storage_options)
        restored = workers.values("own")
    found = contents(tf.train.latest_checkpoint(download(place, tmp_path / "copy")))
    keys = [f"part_{rank}/.ATTRIBUTES/VARIABLE_VALUE" for rank in range(3)]

    assert [([1000.0 * rank + rank], 1000 * rank + 1 + rank) for rank in range(3)] == saved == restored
    assert [(40 + rank,) for rank in range(3)] == [found[key].shape for key in keys]


# Who is killed, of how many, before which request of a save; and whether that save has landed by then.
KILLS = {
    "ministack": [
        (3, 1, Moment("put", "ckpt-"), False),
        (2, 0, Moment("put", "checkpoint"), False),
        (4, 3, Moment("put", "/part-3"), False),
        (3, 0, Moment("remove", PLAN), True),
    ],
    "local": [(2, 1, Moment("put", "/join-1"), False)],
}


@pytest.mark.parametrize("store", KILLS)
def test_a_job_whose_workers_are_killed_goes_on_with_another_number_of_workers(store, request, tmp_path):
    place = Place(str(tmp_path / "run")) if store == "local" else on(request.getfixturevalue("ministack"))
    step = 0
    for size, rank, moment, landed in KILLS[store]:
        with training(size) as workers:
            step = resume_and_save(workers, place, step, tmp_path / f"{step}")
            workers.values("train", 1)
            answers = workers.save_but_kill(rank, moment)
        for answer in answers:
            if not landed:
                assert answer.kind in {"IncompleteError", "ConflictError", "UnknownOutcomeError"}
            assert answer.seconds < 4 * TIMEOUT
        step += landed
        assert step == step_in(download(place, tmp_path / f"killed-{step}"))
    with training(2) as workers:
        resume_and_save(workers, place, step, tmp_path / "end")


def resume_and_save(workers, place, step, folder):
    """Resumes at a step, makes another, and saves; after that there is nothing but what is listed."""
    assert {step} == {restored for _, restored in workers.values("open", place.url, place.storage_options, TIMEOUT)}
    workers.values("train", 1)
    assert len(set(workers.values("save"))) == 1
    copy = download(place, folder)
    assert step + 1 == step_in(copy)
    assert needed(copy) == read_all(place).keys()
    return step + 1


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "with moving averages"])
def test_a_keras_model_its_optimizer_and_a_metric_are_saved_as_tensorflow_would_save_them(
    normalize, ministack, tmp_path
):
    place = on(ministack)
    with training(2, model=partial(KerasNet, normalize=normalize)) as workers:
        workers.values("open", place.url, place.storage_options)
        workers.values("train", 2)
        path = workers.values("save")[0]
        references = workers.values("write", str(tmp_path / "reference"))
    with training(3, model=partial(KerasNet, normalize=normalize)) as workers:
        assert [(path, 2)] * 3 == workers.values("open", place.url, place.storage_options)

    assert_same(contents(references[0]), contents(tf.train.latest_checkpoint(download(place, tmp_path / "copy"))))


def test_a_preempted_job_saves_once_exits_and_goes_on_from_there(ministack, tmp_path):
    place = on(ministack)
    with training(2) as workers:
        workers.values("open", place.url, place.storage_options)
        workers.until_they_train("train_until_preempted")
        os.kill(workers[1].pid, signal.SIGTERM)
        assert [42, 42] == [worker.wait() for worker in workers]
    copy = download(place, tmp_path / "copy")
    step = step_in(copy)
    with training(3) as workers:
        restored = workers.values("open", place.url, place.storage_options)

    assert step > 0
    assert [(f"{place.url}/ckpt-{step}", step)] * 3 == restored
    assert [f"{copy}/ckpt-{step}"] == tf.train.get_checkpoint_state(copy).all_model_checkpoint_paths
    assert needed(copy) == read_all(place).keys()
    with pytest.raises(tf.errors.UnimplementedError):  # whatever had asked TensorFlow's own file system had failed
        tf.io.gfile.exists(place.url)
