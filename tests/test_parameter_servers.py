"""Real clusters: a coordinator, workers and parameter servers, each a process that sees nobody else's files."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support import coordinator
from support.cluster import Cluster, RemoteError
from support.places import Place, download, read_all

from ckpt_remote.bundle import decode_index, tensor_key

pytestmark = pytest.mark.slow

MEGABYTE = 2**20
VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture(scope="module")
def cluster():
    with Cluster(chief=1, worker=2, ps=2) as running:
        running.start("worker", "ps")
        yield running


@pytest.fixture
def place(tmp_path):
    return Place(str(tmp_path / "run"))


def coordinate(cluster, shards=2, *, slots=True):
    """A coordinator that has connected to what those before have left, and has made a new model."""
    process = cluster.run("chief")
    process.call(coordinator.begin, shards, slots)
    return process


@pytest.fixture
def chief(cluster):
    return coordinate(cluster)


def loaded(prefix):
    """All tensors of a checkpoint, as stock TensorFlow reads them."""
    reader = tf.train.load_checkpoint(prefix)
    return {
        name: np.asarray(reader.get_tensor(name)).tobytes()
        for name in reader.get_variable_to_shape_map()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def status(task, field):
    (line,) = (line for line in Path(f"/proc/{task.pid}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def test_a_plain_copy_is_what_tensorflow_itself_would_have_written(chief, place, tmp_path):
    chief.call(coordinator.train, 3)
    path = chief.call(coordinator.save, place.url)
    native = loaded(f"{chief.call(coordinator.save_native)}/ckpt-1")
    copy = loaded(tf.train.latest_checkpoint(download(place, tmp_path / "copy")))

    assert f"{place.url}/ckpt-1" == path
    assert {f"table/{VALUE}", f"dense/.OPTIMIZER_SLOT/slotted/accumulator/{VALUE}"} < native.keys() == copy.keys()
    assert native == copy


def test_a_sharded_variable_is_slices_of_one_tensor_and_any_other_is_whole(chief, place):
    chief.call(coordinator.save, place.url)
    index = decode_index(read_all(place)["ckpt-1.index"], path="ckpt-1.index")
    slices = {name: len(index.entries[tensor_key(f"{name}/{VALUE}")].slices) for name in ("table", "dense")}

    assert {"table": 2, "dense": 0} == slices
    assert ["ckpt-1.data-00000-of-00001"] == [key for key in read_all(place) if ".data-" in key]


def test_the_users_sharding_callback_is_honoured(chief, place):
    chief.call(coordinator.train, 3)
    before = chief.call(coordinator.values)
    chief.call(coordinator.save_one_each, place.url)
    chief.call(coordinator.overwrite)
    chief.call(coordinator.restore, place.url)

    index = decode_index(read_all(place)["ckpt-1.index"], path="ckpt-1.index")
    ours = [entry.shard for key, entry in index.entries.items() if entry.size and b"sharded" in key]

    assert 7 == len(ours) == len(set(ours))
    assert before == chief.call(coordinator.values)


def test_a_checkpoint_goes_to_another_number_of_shards_and_of_servers_and_to_none(cluster, place):
    first = coordinate(cluster, 2, slots=False)
    first.call(coordinator.train, 3)
    before = first.call(coordinator.values)
    first.call(coordinator.save, place.url)
    other = coordinate(cluster, 3, slots=False)
    other.call(coordinator.restore, place.url)
    with Cluster(chief=1, worker=1, ps=1) as smaller:
        smaller.start("worker", "ps")
        single = coordinate(smaller, 1, slots=False)
        single.call(coordinator.restore, place.url)
        on_one = single.call(coordinator.values)
    alone = coordinator.Job()
    with place.manager(alone.checkpoint) as manager:
        manager.restore().assert_existing_objects_matched()

    assert before["table"][1] != [0.0] * 4
    assert before["slot"] is not None
    assert before == other.call(coordinator.values) == on_one == alone.values()


def test_a_model_without_a_strategy_is_restored_onto_parameter_servers(cluster, place):
    alone = coordinator.Job()
    alone.table.assign(np.arange(48, dtype=np.float32).reshape(12, 4))
    with place.manager(alone.checkpoint) as manager:
        manager.save()
    chief = coordinate(cluster, slots=False)
    chief.call(coordinator.restore, place.url)

    assert alone.values() == chief.call(coordinator.values)


def test_no_other_task_reads_or_writes_a_file_and_nothing_stays_behind(cluster, chief, place):
    chief.call(coordinator.save, place.url)
    chief.call(coordinator.restore, place.url)
    others = [cluster[kind, index].folder for kind in ("worker", "ps") for index in range(2)]

    assert [[], [], [], []] == [[path for path in folder.rglob("*") if path.is_file()] for folder in others]
    assert [] == chief.call(coordinator.files)


@pytest.mark.parametrize("write", [coordinator.save_while_workers_write, coordinator.save_while_overwritten])
def test_what_is_saved_is_what_was_there_at_the_call(chief, place, write):
    chief.call(coordinator.train, 1)
    before = chief.call(coordinator.values)
    chief.call(write, place.url)
    after = chief.call(coordinator.values)
    chief.call(coordinator.restore, place.url)

    assert before["table"] != after["table"]
    assert before["dense"] != after["dense"]
    assert before == chief.call(coordinator.values)


def test_workers_need_not_live(cluster, chief, place):
    before = chief.call(coordinator.values)
    for index in range(2):
        cluster["worker", index].kill()
    try:
        chief.call(coordinator.save, place.url)
        chief.call(coordinator.restore, place.url)
    finally:
        cluster.start("worker")

    assert before == chief.call(coordinator.values)


@pytest.mark.parametrize("save", [coordinator.save_after_a_server_died, coordinator.save_while_a_server_dies])
def test_when_a_server_dies_nothing_is_visible_and_the_next_coordinator_goes_on(cluster, chief, place, save):
    chief.call(coordinator.save, place.url)
    before = read_all(place)
    try:
        with pytest.raises(RemoteError, match="parameter server") as raised:
            chief.call(save, place.url, cluster["ps", 1].pid)
        left = read_all(place), chief.call(coordinator.files), chief.call(coordinator.holdings)
    finally:
        cluster.start("ps")
    following = coordinate(cluster)
    following.call(coordinator.restore, place.url)

    assert "IncompleteError" in raised.value.names
    assert "StoreError" not in raised.value.names
    assert (before, [], 0) == left
    assert f"{place.url}/ckpt-2" == following.call(coordinator.save, place.url)


def test_a_coordinator_takes_no_values_that_another_left_on_the_servers(cluster, chief, place):
    chief.call(coordinator.overwrite)
    with pytest.raises(EOFError):
        chief.call(coordinator.save_while_dying, place.url)
    following = coordinate(cluster)
    before = following.call(coordinator.values)
    following.call(coordinator.save, place.url)
    following.call(coordinator.overwrite)
    following.call(coordinator.restore, place.url)

    assert before == following.call(coordinator.values)


def peak_of_own_memory(task):
    """The most that a task has of memory that no file backs, until its call is done."""
    most = 0
    while not task.is_done(within=0.002):
        most = max(most, status(task, "RssAnon"))
    return most


def test_the_coordinators_memory_does_not_grow_with_the_model(cluster, place, tmp_path):
    process = cluster.run("chief")
    process.call(coordinator.begin_large, 2, 200 * MEGABYTE)
    process.call(coordinator.fill, 1.0)
    before = status(process, "RssAnon")
    process.send(coordinator.save, place.url)
    growth = peak_of_own_memory(process) - before
    process.result()
    values = tf.train.load_variable(tf.train.latest_checkpoint(download(place, tmp_path / "copy")), f"large/{VALUE}")
    print(f"A save of 200 MB took {growth / 1e6:.0f} MB of the coordinator's memory.")

    assert (200 * MEGABYTE, 1.0, 1.0) == (values.nbytes, values.min(), values.max())
    assert growth < 64 * MEGABYTE


def test_saves_leave_nothing_in_memory_here_or_there(cluster, place):
    process = cluster.run("chief")
    process.call(coordinator.begin_large, 2, 200 * MEGABYTE)
    seen = []
    for number in range(6):
        process.call(coordinator.fill, float(number))
        process.call(coordinator.save, place.url)
        seen.append([status(task, "RssAnon") for task in (process, cluster["ps", 0], cluster["ps", 1])])
    growth = [last - second for second, last in zip(seen[1], seen[-1], strict=True)]
    print("In four saves of 200 MB coordinator and servers grew by", [f"{size / 1e6:.0f} MB" for size in growth])

    assert 0 == process.call(coordinator.holdings)
    assert max(growth) < 100 * MEGABYTE


def test_tensorflow_hands_a_callback_what_we_rely_on(chief):
    """If this fails, TensorFlow has changed: read `tap` and `pull` again."""
    seen = {(key.partition("/.ATTR")[0], spec): rest for key, spec, *rest in chief.call(coordinator.look)}

    assert {
        ("table", "12 4 0,6:0,4"): [True, "ps"],  # whether symbolic, and where
        ("table", "12 4 6,6:0,4"): [True, "ps"],
        ("dense", ""): [True, "ps"],
        ("lookup", ""): [False, "chief"],
        ("_CHECKPOINTABLE_OBJECT_GRAPH", ""): [False, "chief"],
    }.items() <= seen.items()
