"""The same scenario through `tf.train.CheckpointManager` and through ours leaves the same behind.

Hypothesis chooses the scenario: settings, saves, steps, restarts with other settings, and a clock that jumps both ways.
"""

import itertools
from pathlib import Path
from unittest import mock

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import Place, read_all

import ckpt_remote

HOUR = 3600.0

arguments = st.fixed_dictionaries(
    {
        "max_to_keep": st.none() | st.integers(1, 3),
        "keep_checkpoint_every_n_hours": st.none() | st.sampled_from([0.5, 1, 2]),
        "checkpoint_interval": st.none() | st.integers(1, 3),
        "checkpoint_name": st.sampled_from(["ckpt", "ckpt", "other"]),
    }
)
saves = st.tuples(st.just("save"), st.none() | st.integers(0, 6), st.booleans())
moves = st.tuples(st.just("clock"), st.floats(-2 * HOUR, 3 * HOUR).map(lambda s: round(s, 2)))
steps = st.tuples(st.just("step"), st.integers(0, 2))
restarts = st.tuples(st.just("restart"), arguments, st.booleans())
switches = st.tuples(st.just("switch"), arguments)
scenarios = st.lists(saves | saves | moves | steps | restarts, min_size=1, max_size=14)


class Run:
    """A scenario under way, on one kind of manager."""

    def __init__(self, make, directory):
        self.make, self.directory = make, directory
        self.now, self.step, self.value = 1.7e9, tf.Variable(0), tf.Variable(0.0)
        self.perform(("restart", {"max_to_keep": 2}, False))

    def start(self, chosen):
        self.checkpoint = tf.train.Checkpoint(value=self.value)
        self.manager = self.make(
            self.checkpoint,
            self.directory,
            step_counter=self.step if chosen.get("checkpoint_interval") else None,
            **chosen,
        )

    def perform(self, action):
        self.now += 0.125
        with mock.patch("time.time", side_effect=lambda: self.now):
            match action:
                case "save", number, check_interval:
                    self.value.assign_add(1.0)
                    return self.manager.save(checkpoint_number=number, check_interval=check_interval)
                case "clock", seconds:
                    self.now += seconds
                case "step", count:
                    self.step.assign_add(count)
                case "restart", chosen, restore:
                    self.start(chosen)
                    return self.manager.restore_or_initialize() if restore else None
        return None

    def seen(self, answer, files):
        """What a user can see, with paths relative to the directory."""

        def relative(path):
            return path and path.removeprefix(f"{self.directory}/")

        return {
            "answer": relative(answer),
            "latest": relative(self.manager.latest_checkpoint),
            "checkpoints": [relative(path) for path in self.manager.checkpoints],
            "counter": int(self.checkpoint.save_counter),
            "value": float(self.value),
            "state": "".join(
                line for line in files.get("checkpoint", b"").decode().splitlines(keepends=True) if line[0] != "#"
            ),
            "on the store": sorted(name for name in files if name.endswith(".index")),
        }


def read_folder(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*") if path.is_file()}


@settings(max_examples=60, deadline=None)
@given(scenario=scenarios)
def test_the_same_scenario_leaves_the_same_state_and_checkpoints(scenario, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("stock") / "run")
    place = Place.in_memory()
    stock = Run(tf.train.CheckpointManager, folder)
    ours = Run(ckpt_remote.CheckpointManager, place.url)

    for action in scenario:
        expected = stock.seen(stock.perform(action), read_folder(folder))
        assert expected == ours.seen(ours.perform(action), read_all(place))


@settings(max_examples=25, deadline=None)
@given(scenario=st.lists(saves | saves | moves | switches, min_size=3, max_size=12))
def test_stock_and_our_managers_take_turns_on_one_folder(scenario, tmp_path_factory):
    alone, shared = (str(tmp_path_factory.mktemp(name) / "run") for name in ("alone", "shared"))
    stock = Run(tf.train.CheckpointManager, alone)
    mixed = Run(tf.train.CheckpointManager, shared)
    kinds = itertools.cycle([ckpt_remote.CheckpointManager, tf.train.CheckpointManager])

    for action in scenario:
        if action[0] == "switch":
            mixed.make = next(kinds)
            action = ("restart", action[1], True)  # noqa: PLW2901  (the same restart, of another kind)
        expected = stock.seen(stock.perform(action), read_folder(alone))
        assert expected == mixed.seen(mixed.perform(action), read_folder(shared))


SCENARIO = [
    ("save", None, True), ("clock", 1.5 * HOUR), ("save", None, True), ("save", None, True), ("clock", -HOUR),
    ("save", 2, True), ("save", None, True), ("restart", {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1}, True),
    ("save", None, True), ("clock", 2 * HOUR), ("save", None, True), ("save", None, True),
]  # fmt: skip


def test_a_scenario_on_every_store_is_as_on_a_disk_with_tensorflow(place, tmp_path):
    folder = str(tmp_path / "stock")
    stock = Run(tf.train.CheckpointManager, folder)
    ours = Run(place.manager, place.url)

    for action in SCENARIO:
        expected = stock.seen(stock.perform(action), read_folder(folder))
        assert expected == ours.seen(ours.perform(action), read_all(place))


@pytest.mark.parametrize("kept", [0, -1])
def test_a_wrong_max_to_keep_is_refused_as_tensorflow_does(kept, tmp_path):
    with pytest.raises(ValueError, match="max_to_keep"):
        tf.train.CheckpointManager(tf.train.Checkpoint(), str(tmp_path), max_to_keep=kept)
    with pytest.raises(ValueError, match="max_to_keep"):
        ckpt_remote.CheckpointManager(tf.train.Checkpoint(), "memory://x/y", max_to_keep=kept)


def test_an_interval_needs_a_step_counter_as_with_tensorflow(tmp_path):
    with pytest.raises(ValueError, match="step_counter"):
        tf.train.CheckpointManager(tf.train.Checkpoint(), str(tmp_path), 1, checkpoint_interval=2)
    with pytest.raises(ValueError, match="step_counter"):
        ckpt_remote.CheckpointManager(tf.train.Checkpoint(), "memory://x/y", 1, checkpoint_interval=2)
