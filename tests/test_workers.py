"""Who saves together is who TensorFlow says trains together, and what makes no sense is refused.

TensorFlow is asked wherever it says something: `TFConfigClusterResolver` reads the environment, and
`multi_worker_util` numbers the workers for its collectives.
"""

import json
import os
from unittest import mock

import pytest

from ckpt_remote.workers import Workers

PAIR = {"worker": ["a:1", "b:1"]}
CHIEFED = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}


def config(cluster, kind=None, index=None):
    task = {name: value for name, value in (("type", kind), ("index", index)) if value is not None}
    return {"cluster": cluster, "task": task}


def workers(config):
    return Workers.from_environment({"TF_CONFIG": config if isinstance(config, str) else json.dumps(config)})


def place_by_tensorflow(config):
    """This worker's number and how many there are, as TensorFlow's collectives have it."""
    import tensorflow as tf
    from tensorflow.python.distribute import multi_worker_util

    with mock.patch.dict(os.environ, TF_CONFIG=json.dumps(config)):
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        task = resolver.cluster_spec(), resolver.task_type, resolver.task_id
        return (
            multi_worker_util.id_in_cluster(*task),
            multi_worker_util.worker_count(*task[:2]),
            multi_worker_util.is_chief(*task),
        )


TRAINING = [
    config(PAIR, "worker", 0),
    config(PAIR, "worker", 1),
    config(PAIR, "worker", "1"),
    config(CHIEFED, "chief", 0),
    config(CHIEFED, "worker", 0),
    config(CHIEFED, "worker", 1),
    config({**CHIEFED, "evaluator": ["e:1"]}, "worker", 1),
    config({"chief": ["c:1"]}, "chief", 0),
    config({"worker": {"1": "b:1", "0": "a:1"}}, "worker", 1),
    config({"worker": {str(n): f"w{n}:1" for n in range(11)}}, "worker", 10),
]
SENSELESS = [
    config(PAIR, "worker", 2),
    config(CHIEFED, "worker", 2),
    config({"worker": {"0": "a:1", "2": "c:1"}}, "worker", 2),
    config(PAIR, "chief", 0),
    config({"worker": "a:1"}, "worker", 0),
    config({"worker": 2}, "worker", 0),
    config(PAIR, "worker", "one"),
    config(PAIR, "worker", [1]),
    config(PAIR, None, 1),
    config(PAIR),
]


@pytest.mark.parametrize("config", TRAINING, ids=json.dumps)
def test_rank_and_size_are_those_of_tensorflows_collectives(config):
    found = workers(config)

    assert place_by_tensorflow(config) == (found.rank, found.size, found.leads)


@pytest.mark.parametrize("config", SENSELESS, ids=json.dumps)
def test_what_tensorflow_cannot_place_is_refused(config):
    with pytest.raises((ValueError, TypeError)):
        place_by_tensorflow(config)
    with pytest.raises(ValueError, match=r"TF_CONFIG|there is no rank"):
        workers(config)


@pytest.mark.parametrize(
    "cluster",
    [PAIR, CHIEFED, {"master": ["m:1"], "worker": ["a:1"]}, {**CHIEFED, "evaluator": ["e:1"]}],
    ids=json.dumps,
)
def test_the_tasks_that_train_have_each_a_rank_of_their_own_and_one_job(cluster):
    tasks = [(kind, n) for kind, tasks in cluster.items() if kind != "evaluator" for n in range(len(tasks))]
    found = [workers(config(cluster, *task)) for task in tasks]

    assert list(range(len(tasks))) == sorted(each.rank for each in found)
    assert [(len(tasks), found[0].job)] == list({(each.size, each.job) for each in found})
    assert [True] + [False] * (len(tasks) - 1) == [each.leads for each in sorted(found, key=lambda each: each.rank)]


@pytest.mark.parametrize("kind", ["chief", "master"])
def test_a_chief_leads_and_worker_0_follows_it(kind):
    cluster = {kind: ["c:1"], "worker": ["a:1", "b:1"]}

    assert [0, 1, 2] == [workers(config(cluster, *task)).rank for task in ((kind, 0), ("worker", 0), ("worker", 1))]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", ["chief", "worker", "ps"])
def test_where_parameter_servers_hold_the_variables_each_process_is_alone(kind, index):
    cluster = {**CHIEFED, "ps": ["p:1", "q:1"]}

    assert Workers(0, 1) == workers(config(cluster, kind, index))


@pytest.mark.parametrize("cluster", [PAIR, {**CHIEFED, "evaluator": ["e:1"]}], ids=json.dumps)
def test_an_evaluator_is_alone(cluster):
    assert Workers(0, 1) == workers(config(cluster, "evaluator", 0))


@pytest.mark.parametrize("text", ["", "{}", '{"cluster": {}}', '{"cluster": null}', '{"task": {"type": "worker"}}'])
def test_where_no_cluster_is_named_the_process_is_alone(text):
    assert Workers(0, 1) == workers(text)
    assert Workers(0, 1) == Workers.from_environment({})


def test_it_is_the_process_own_environment_that_counts(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(config(PAIR, "worker", 1)))

    assert (1, 2) == (Workers.from_environment().rank, Workers.from_environment().size)


def test_jobs_of_other_addresses_are_other_jobs():
    moved = {"worker": ["a:1", "b:2"]}

    assert workers(config(PAIR, "worker", 0)).job != workers(config(moved, "worker", 0)).job


def test_a_cluster_written_as_a_mapping_is_the_same_job_as_one_written_as_a_list():
    mapping = {"worker": {"1": "b:1", "0": "a:1"}}

    assert workers(config(PAIR, "worker", 1)) == workers(config(mapping, "worker", 1))


@pytest.mark.parametrize(
    "text",
    ["{", "worker", "[]", "3", "null", '"worker"', '{"cluster": ["a:1"]}', '{"cluster": {}, "task": "worker"}'],
)
def test_what_is_no_configuration_is_a_value_error_that_says_what_to_mend(text):
    with pytest.raises(ValueError, match=r"TF_CONFIG is no .* workers="):
        workers(text)


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0), (1, 0), (0, -1)])
def test_a_rank_that_is_none_is_refused(rank, size):
    with pytest.raises(ValueError, match=f"there is no rank {rank} of {size}"):
        Workers(rank, size)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_that_is_no_positive_number_is_refused(timeout):
    with pytest.raises(ValueError, match="positive number of seconds"):
        Workers(0, 1, timeout=timeout)


def test_of_all_workers_the_one_of_rank_0_leads():
    assert [True, False, False] == [Workers(rank, 3).leads for rank in range(3)]
