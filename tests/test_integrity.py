"""Damaged and hostile bytes: whatever is wrong is noticed before a value is assigned, and nothing leads outside.

A checkpoint of several data objects, with slices, strings and bfloat16, is damaged bit by bit; states and indexes are
rewritten by a fuzzer, below their checksums too.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, download, read_all

from ckpt_remote import CorruptError
from ckpt_remote.bundle import decode_index
from ckpt_remote.origin import SEAL_SIZE
from ckpt_remote.state import decode_state

DAMAGES = 500
FUZZED = 10_000


class Model:
    """Variables of every kind that a checkpoint treats in its own way, and their checkpoint."""

    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        self.large = tf.Variable(draw.standard_normal((64, 33)))
        self.half = tf.Variable(tf.cast(draw.standard_normal(257), tf.bfloat16))
        self.text = tf.Variable([b"", "é".encode(), draw.bytes(300)])
        self.flag = tf.Variable(bool(seed % 2))
        self.empty = tf.Variable(np.zeros((0, 3)))
        self.checkpoint = tf.train.Checkpoint(
            large=self.large, half=self.half, text=self.text, flag=self.flag, empty=self.empty
        )

    def values(self):
        return [variable.numpy().tobytes() if variable.dtype != tf.string else variable.numpy().tolist()
                for variable in (self.large, self.half, self.text, self.flag, self.empty)]  # fmt: skip


@pytest.fixture
def saved(monkeypatch):
    """A place with one checkpoint, and what was saved."""
    monkeypatch.setattr("ckpt_remote.checkpoint.shard_size", lambda total: 3000)
    place, model = Place.in_memory(), Model(1)
    place.manager(model.checkpoint, max_to_keep=2).save()
    return place, model


def used_bytes(objects):
    """How many bytes of each object belong to the checkpoint; behind them is only the seal."""
    index = decode_index(objects["ckpt-1.index"])
    sizes = {key: len(data) for key, data in objects.items()}
    return {key: size - SEAL_SIZE * (".data-" in key) for key, size in sizes.items()}, index


def _flipped(data, position, bit):
    flipped = bytearray(data)
    flipped[position] ^= 1 << bit
    return bytes(flipped)


def damaged(data, chance):
    """The bytes with one bit flipped or the end cut off, and the first byte that is not as it was."""
    position = chance.randrange(len(data))
    if chance.random() < 0.3:
        return data[:position], position
    return _flipped(data, position, chance.randrange(8)), position


@pytest.mark.slow
def test_every_flipped_bit_and_every_cut_is_noticed_before_anything_is_assigned(saved, capsys):
    place, model = saved
    objects, store = read_all(place), place.store()
    used, index = used_bytes(objects)
    assert any(entry.slices for entry in index.entries.values())
    assert 4 <= len(objects)
    chance, found = random.Random(5), Counter()
    for _ in range(DAMAGES):
        key = chance.choice(sorted(objects))
        data, position = damaged(objects[key], chance)
        store.put(key, [data], "overwrite")
        other = Model(2)
        before = other.values()
        try:
            manager = place.manager(other.checkpoint, max_to_keep=2)
            manager.restore_or_initialize()
        except CorruptError:
            found[key.partition("-of-")[0], "noticed"] += 1
            assert before == other.values(), "it was noticed too late"
        else:
            assert position >= used[key], f"byte {position} of {key} was damaged, and nobody noticed"
            assert model.values() == other.values()
            found["the seal behind the last byte", "harmless"] += 1
        store.put(key, [objects[key]], "overwrite")
    with capsys.disabled():
        print(f"\n{DAMAGES} damages: " + ", ".join(f"{' '.join(what)} {n}" for what, n in sorted(found.items())))

    noticed = sum(count for (_, what), count in found.items() if what == "noticed")
    assert DAMAGES == noticed + found["the seal behind the last byte", "harmless"]
    assert noticed > 0.9 * DAMAGES


@pytest.mark.parametrize(
    ("key", "decode"),
    [("ckpt-1.index", decode_index), ("checkpoint", partial(decode_state, path="checkpoint", directories=()))],
)
def test_every_single_bit_and_every_cut_of_a_state_and_an_index_is_noticed(key, decode, saved):
    data = saved[0].store().read(key).data
    for position in range(len(data)):
        for changed in (data[:position], *(_flipped(data, position, bit) for bit in range(8))):
            with pytest.raises(CorruptError):
                decode(changed)


@pytest.mark.slow
def test_no_fuzzed_state_or_index_leads_outside_or_takes_long(saved, tmp_path, capsys):
    """In a process of its own, without TensorFlow, so that what memory it needs is the fuzzed files' doing."""
    place, _ = saved
    place.manager(Model(2).checkpoint, max_to_keep=3, checkpoint_name="other").save()
    folder = download(place, tmp_path / "real")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "support.fuzz", folder, str(FUZZED)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, timeout=280)
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(
            f"\n{found['runs']:,} fuzzed files: {found['outcomes']}; {found['keys']:,} keys asked for, "
            f"{len(found['outside'])} outside; slowest {found['slowest']:.3f} s, {found['bytes'] / 2**20:.0f} MiB"
        )

    assert FUZZED == found["runs"] == sum(found["outcomes"].values())
    assert [] == found["outside"] == found["unexpected"]
    assert found["slowest"] < 1.0
    assert found["bytes"] < 256 * 2**20
    for outcome in ("state read", "state CorruptError", "index read", "index CorruptError"):
        assert found["outcomes"][outcome] >= FUZZED / 1000, f"hardly any {outcome}"
