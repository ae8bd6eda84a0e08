"""Many managers, one directory, a bad network: what was acknowledged is there, once, and nothing else is.

Eight managers commit to one directory over HTTP, and a quarter of their writes go wrong on the way: refused before or
after they landed, cut off, or landing later than the client thinks. Each manager that loses a race makes itself anew
from what is there. Plain TensorFlow, on a copy of the bucket, is the judge.
"""

import collections
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf
from support.places import Place, download
from support.proxy import Pass, proxy, random_faults

from ckpt_remote import ConflictError, StoreError, UnknownOutcomeError
from ckpt_remote.store import Policy, retry

MANAGERS, COMMITS, RATE, SEED = 8, 25, 0.25, 7
VALUE = "value/.ATTRIBUTES/VARIABLE_VALUE"


class Writer:
    """One manager after another, until so many commits are acknowledged. No two writers save equal values.

    Attributes:
        acknowledged: The values of the saves that returned, and the names they returned.
        unknown: The values of those that may have landed.
        failed: How often which certain failure was met.
    """

    def __init__(self, place, number):
        self.acknowledged = {}
        self.unknown = set()
        self.failed = collections.Counter()
        self._place = place
        self._values = itertools.count(1_000_000 * (number + 1))
        self._chance = random.Random(number)
        self._variable = tf.Variable(0, dtype=tf.int64)
        self._checkpoint = tf.train.Checkpoint(value=self._variable)

    def run(self, commits):
        manager, lost = self._anew(), 0
        while len(self.acknowledged) < commits:
            value = next(self._values)
            self._variable.assign(value)
            try:
                path = manager.save()
            except StoreError:  # the next save works
                self.failed["store"] += 1
            except (ConflictError, UnknownOutcomeError) as error:
                if isinstance(error, UnknownOutcomeError):
                    self.unknown.add(value)
                self.failed["conflict"] += isinstance(error, ConflictError)
                lost += 1
                manager.close()
                # Who claims a directory fences all others: rivals that come back at once fence each other.
                time.sleep(self._chance.uniform(0.0, min(2.0, 0.02 * 2**lost)))
                manager = self._anew()
            else:
                self.acknowledged[value] = Path(path).name
                lost = 0
        manager.close()

    def _anew(self):
        manager = self._place.manager(self._checkpoint)
        manager.restore_or_initialize()
        return manager


def listed(folder):
    """The value of each checkpoint that the state lists, by name, as plain TensorFlow sees them."""
    paths = tf.train.get_checkpoint_state(folder).all_model_checkpoint_paths
    return [(Path(path).name, int(tf.train.load_variable(path, VALUE))) for path in paths]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The same pauses between attempts, but shorter."""
    monkeypatch.setattr(retry, "Policy", lambda **given: Policy(**{"first_delay": 0.01} | given))


@pytest.fixture(params=["ministack", "moto", "gcs"])
def server(request):
    if request.param == "gcs":
        request.getfixturevalue("_unhurried")
        return request.getfixturevalue("gcs_server")
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_what_many_rivals_were_told_is_what_is_there(server, request, tmp_path, capsys):
    scheme = "gs" if request.node.callspec.params["server"] == "gcs" else "s3"
    start = time.monotonic()
    with proxy(server.endpoint, random_faults(SEED, RATE)) as faulty:
        place = Place(
            f"{scheme}://{server.new_bucket()}/run", replace(server, endpoint=faulty.endpoint).storage_options
        )
        writers = [Writer(place, number) for number in range(MANAGERS)]
        with ThreadPoolExecutor(MANAGERS) as pool:
            list(pool.map(lambda writer: writer.run(COMMITS), writers))
        faulty.release()
        found = listed(download(place, tmp_path / "copy"))

    acknowledged = {value: name for writer in writers for value, name in writer.acknowledged.items()}
    unknown = set().union(*(writer.unknown for writer in writers))
    failed = sum((writer.failed for writer in writers), collections.Counter())
    writes = [passage for passage in faulty.log if passage.arrival.writes]
    faults = sum(passage.verdict != Pass() for passage in writes)
    with capsys.disabled():
        print(
            f"\n{request.node.name}: {len(acknowledged)} commits acknowledged, {len(found)} found, "
            f"{failed['conflict']} conflicts, {failed['store']} failures, {len(unknown)} unknown; "
            f"{faults} of {len(writes)} writes faulted; {time.monotonic() - start:.1f} s"
        )

    assert len(acknowledged) == MANAGERS * COMMITS
    values = collections.Counter(value for _, value in found)
    assert max(values.values()) == 1
    assert acknowledged.items() <= {value: name for name, value in found}.items()
    assert values.keys() - acknowledged.keys() <= unknown
    assert faults > 0.15 * len(writes)
