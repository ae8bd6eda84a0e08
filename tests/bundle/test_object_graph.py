"""Graphs of workers that save one checkpoint together: TensorFlow finds every worker's objects in the merged one."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import open_bundle, write_files
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph
from tensorflow.python.checkpoint.util import add_checkpoint_values_check

from ckpt_remote.bundle import (
    OBJECT_GRAPH,
    BundleWriter,
    Index,
    decode_index,
    encode_index,
    index_name,
    merge,
    merge_object_graphs,
    shard_name,
)
from ckpt_remote.errors import CorruptError

VALUE = "VARIABLE_VALUE"


def save(folder: Path, name: str, **objects: object) -> bytes:
    """Let TensorFlow save a checkpoint of `objects`, and return its graph."""
    tf.train.Checkpoint(**objects).write(str(folder / name))
    return open_bundle(folder / name).get_tensor(OBJECT_GRAPH).item()


def save_merged(folder: Path, names: Sequence[str]) -> str:
    """Merge checkpoints of one shard each into one, and return its prefix. Of what several have, one is kept."""
    graphs = [open_bundle(folder / name).get_tensor(OBJECT_GRAPH).item() for name in names]
    writer = BundleWriter("graph")
    writer.add(OBJECT_GRAPH, np.array(merge_object_graphs(graphs), object))
    files = writer.finish()
    parts, shards, known = [], [], {OBJECT_GRAPH.encode()}
    for name in names:
        index = decode_index((folder / index_name(name)).read_bytes())
        mine = {key: entry for key, entry in index.entries.items() if key not in known}
        known |= mine.keys()
        parts.append(Index(index.header, mine))
        shards.append((folder / shard_name(name, 0, 1)).read_bytes())
    parts.append(decode_index(files[index_name("graph")]))
    shards.append(files[shard_name("graph", 0, 1)])
    merged = {shard_name("merged", number, len(shards)): data for number, data in enumerate(shards)}
    write_files(folder, merged | {index_name("merged"): encode_index(merge(parts))})
    return str(folder / "merged")


def message(data: bytes) -> TrackableObjectGraph:
    return TrackableObjectGraph.FromString(data)


class Counter(tf.Module):
    """A variable, to be saved under any name."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.count = tf.Variable(value)


def pipeline(start: int) -> tf.data.Iterator:
    return iter(tf.data.Dataset.range(start, start + 100))


def trained(seed: int, width: int = 3) -> tuple[keras.Model, tf.compat.v1.train.Optimizer]:
    """A Keras model and an optimizer of TensorFlow's own, whose slots are in the graph as such."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(width), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((4, 2)), np.ones((4, 1)))
    return model, stepped([variable.value for variable in model.trainable_variables])


def stepped(variables: Sequence[tf.Variable]) -> tf.compat.v1.train.Optimizer:
    optimizer = tf.compat.v1.train.AdamOptimizer(0.1)
    optimizer.apply_gradients([(tf.ones_like(variable), variable) for variable in variables])
    return optimizer


def slots_of(optimizer: tf.compat.v1.train.Optimizer, variables: Sequence[tf.Variable]) -> list[np.ndarray]:
    return [optimizer.get_slot(variable, name).numpy() for variable in variables for name in ("m", "v")]


def test_each_of_two_workers_finds_its_iterator_and_the_model_in_the_merged_checkpoint(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1)
    iterators = [pipeline(0), pipeline(1000)]
    for number, iterator in enumerate(iterators):
        for _ in range(number + 3):
            next(iterator)
        save(tmp_path, f"{number}", model=model, optimizer=optimizer, **{f"iterator_{number}": iterator})
    prefix = save_merged(tmp_path, ["0", "1"])
    for number in range(2):
        other, other_optimizer = trained(seed=2)
        iterator = pipeline(1000 * number)
        objects = {"model": other, "optimizer": other_optimizer, f"iterator_{number}": iterator}
        tf.train.Checkpoint(**objects).read(prefix).assert_existing_objects_matched().expect_partial()
        assert next(iterator).numpy() == 1000 * number + number + 3
        assert_same(model.variables + model.optimizer.variables, other.variables + other.optimizer.variables)
        trainable = [[variable.value for variable in one.trainable_variables] for one in (model, other)]
        assert_same(slots_of(optimizer, trainable[0]), slots_of(other_optimizer, trainable[1]))


def assert_same(expected: Sequence[object], actual: Sequence[object]) -> None:
    assert len(expected) == len(actual) > 0
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_parts_of_a_model_and_their_slots_come_together_under_one_optimizer(tmp_path: Path) -> None:
    """Each worker holds one part of the model, and its optimizer the slots of that part alone."""
    parts = {f"part_{number}": tf.Variable([number + 1.0] * 4) for number in range(3)}
    optimizers = [stepped([part]) for part in parts.values()]
    for number, (name, part) in enumerate(parts.items()):
        save(tmp_path, f"{number}", optimizer=optimizers[number], model=tf.train.Checkpoint(**{name: part}))
    prefix = save_merged(tmp_path, ["0", "1", "2"])

    everything = {name: tf.Variable([0.0] * 4) for name in parts}
    whole = stepped(list(everything.values()))
    checkpoint = tf.train.Checkpoint(optimizer=whole, model=tf.train.Checkpoint(**everything))
    checkpoint.read(prefix).assert_existing_objects_matched().assert_consumed()
    assert_same(list(parts.values()), list(everything.values()))
    for number, (name, part) in enumerate(parts.items()):
        assert_same(slots_of(optimizers[number], [part]), slots_of(whole, [everything[name]]))

    part = tf.Variable([0.0] * 4)
    optimizer = stepped([part])
    alone = tf.train.Checkpoint(optimizer=optimizer, model=tf.train.Checkpoint(part_2=part))
    alone.read(prefix).assert_existing_objects_matched().expect_partial()
    assert_same([parts["part_2"]], [part])
    assert_same(slots_of(optimizers[2], [parts["part_2"]]), slots_of(optimizer, [part]))


def test_objects_of_another_worker_are_restored_when_they_appear_later(tmp_path: Path) -> None:
    """TensorFlow waits for an object only if the graph says that it, or one below it, has values."""
    shared = tf.train.Checkpoint()
    empty = tf.train.Checkpoint(inner=tf.train.Checkpoint(alias=shared))
    save(tmp_path, "0", shared=shared, wrapper=empty)
    save(tmp_path, "1", shared=tf.train.Checkpoint(count=tf.Variable(7.0)))
    prefix = save_merged(tmp_path, ["0", "1"])

    checkpoint = tf.train.Checkpoint()
    status = checkpoint.read(prefix)
    checkpoint.wrapper = tf.train.Checkpoint()
    checkpoint.wrapper.inner = tf.train.Checkpoint()
    checkpoint.wrapper.inner.alias = tf.train.Checkpoint()
    checkpoint.wrapper.inner.alias.count = tf.Variable(0.0)
    assert checkpoint.wrapper.inner.alias.count.numpy() == 7.0
    status.expect_partial()


def test_an_object_with_several_paths_and_cycles_stays_one(tmp_path: Path) -> None:
    def build(number: int, value: float) -> tf.train.Checkpoint:
        layer, own = Counter(value), Counter(value + number)
        layer.again = layer
        own.back = own.shared = layer
        layer.__setattr__(f"own_{number}", own)
        return tf.train.Checkpoint(first=layer, second=layer, **{f"worker_{number}": own})

    graphs = []
    for number in range(2):
        build(number, 5.0).write(str(tmp_path / f"{number}"))
        graphs.append(message(open_bundle(tmp_path / f"{number}").get_tensor(OBJECT_GRAPH).item()))
    prefix = save_merged(tmp_path, ["0", "1"])
    merged = message(open_bundle(Path(prefix)).get_tensor(OBJECT_GRAPH).item())

    assert len(merged.nodes) == len(graphs[0].nodes) + 2  # the other worker's counter, and its variable
    root = {child.local_name: child.node_id for child in merged.nodes[0].children}
    layer = {child.local_name: child.node_id for child in merged.nodes[root["first"]].children}
    assert root["first"] == root["second"] == layer["again"]
    assert [root["worker_0"], root["worker_1"]] == [layer["own_0"], layer["own_1"]]
    for number in range(2):
        fresh = build(number, 0.0)
        fresh.read(prefix).assert_existing_objects_matched().expect_partial()
        assert fresh.first.count.numpy() == 5.0
        assert getattr(fresh, f"worker_{number}").count.numpy() == 5.0 + number


def test_the_base_keeps_its_ids_and_wins_what_does_no_harm(tmp_path: Path) -> None:
    base = save(tmp_path, "0", step=tf.Variable(1, name="mine"), deep=tf.train.Checkpoint(x=tf.Variable(1)))
    later = save(tmp_path, "1", step=tf.Variable(1, name="yours"), deep=tf.train.Checkpoint(a=tf.Variable(1)))
    merged = message(merge_object_graphs([base, later]))
    before = message(base)
    for old, new in zip(before.nodes, merged.nodes, strict=False):
        assert list(new.children)[: len(old.children)] == list(old.children)
        assert new.attributes == old.attributes
    assert len(merged.nodes) == len(before.nodes) + 1
    names = {attribute.full_name for node in merged.nodes for attribute in node.attributes}
    assert "mine" in names
    assert "yours" not in names


def test_a_graph_that_says_nothing_new_leaves_the_bytes_of_the_base(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1)
    full = save(tmp_path, "0", model=model, optimizer=optimizer, step=tf.Variable(1))
    less = save(tmp_path, "1", model=model, step=tf.Variable(1))
    assert full != less
    assert merge_object_graphs([full]) == merge_object_graphs([full, full]) == full
    assert merge_object_graphs([full, less, full, less]) == full


def graph(*nodes: Mapping[str, object]) -> bytes:
    """A graph of nodes, each with `children`, `keys` by attribute, `slots` and `saver`."""
    made = TrackableObjectGraph()
    for node in nodes:
        added = made.nodes.add()
        for name, child in node.get("children", {}).items():
            added.children.add(local_name=name, node_id=child)
        for name, key in node.get("keys", {}).items():
            added.attributes.add(name=name, checkpoint_key=key)
        for variable, name, slot in node.get("slots", ()):
            added.slot_variables.add(original_variable_node_id=variable, slot_name=name, slot_variable_node_id=slot)
        if "saver" in node:
            added.registered_saver.name, added.registered_saver.object_name = node["saver"]
        if "values" in node:
            added.has_checkpoint_values.value = node["values"]
    return made.SerializeToString(deterministic=True)


def leaf(key: str) -> Mapping[str, object]:
    return {"keys": {VALUE: key}, "values": True}


def test_slot_variables_are_carried_over_once_with_their_nodes_translated() -> None:
    base = graph({"children": {"w": 1, "opt": 2}}, leaf("w"), {"slots": [(1, "m", 3)]}, leaf("w/m"))
    later = graph(
        {"children": {"opt": 1, "u": 2, "w": 3}},
        {"slots": [(3, "m", 4), (2, "m", 5), (3, "v", 6)]},
        leaf("u"),
        leaf("w"),
        leaf("w/m"),
        leaf("u/m"),
        leaf("w/v"),
    )
    nodes = message(merge_object_graphs([base, later])).nodes
    keys = [node.attributes[0].checkpoint_key if node.attributes else "" for node in nodes]
    assert keys == ["", "w", "", "w/m", "u", "u/m", "w/v"]
    slots = [
        (slot.original_variable_node_id, slot.slot_name, slot.slot_variable_node_id) for slot in nodes[2].slot_variables
    ]
    assert slots == [(1, "m", 3), (4, "m", 5), (1, "v", 6)]


def test_a_registered_saver_is_carried_over() -> None:
    base = graph({"children": {"a": 1}}, {})
    later = graph({"children": {"b": 1, "a": 2}}, {"saver": ("Custom.B", "b")}, {"saver": ("Custom.A", "a")})
    nodes = message(merge_object_graphs([base, later])).nodes
    savers = [(node.registered_saver.name, node.registered_saver.object_name) for node in nodes]
    assert savers == [("", ""), ("Custom.A", "a"), ("Custom.B", "b")]
    # Nothing said is "if it has anything", to TensorFlow; the other graph knows what the base does not.
    assert [str(node.has_checkpoint_values).strip() for node in nodes] == ["", "value: true", "value: true"]
    assert not nodes[0].HasField("has_checkpoint_values")
    assert not nodes[0].HasField("registered_saver")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        pytest.param({"keys": {VALUE: "k1"}}, {"keys": {VALUE: "k2"}}, ["'k1'", "'k2'", repr(VALUE)], id="keys"),
        pytest.param({"saver": ("A", "x")}, {"saver": ("B", "x")}, ["'A' 'x'", "'B' 'x'"], id="savers"),
        pytest.param({"saver": ("A", "x")}, {"saver": ("A", "y")}, ["'A' 'x'", "'A' 'y'"], id="names in a saver"),
    ],
)
def test_a_contradiction_names_the_path_both_values_and_both_graphs(
    one: Mapping[str, object], other: Mapping[str, object], said: list[str]
) -> None:
    first = graph({"children": {"model": 1}}, {"children": {"root": 0, "layer": 2}}, one)
    second = graph({"children": {"model": 2, "aside": 1}}, leaf("aside"), {"children": {"layer": 3}}, other)
    with pytest.raises(ValueError, match="'model/layer'") as caught:
        merge_object_graphs([first, first, second])
    for part in [*said, "object graph 0", "object graph 2"]:
        assert part in str(caught.value)


def test_a_contradiction_about_a_slot_names_optimizer_and_variable() -> None:
    def build(key: str) -> bytes:
        return graph({"children": {"w": 1, "opt": 2}}, leaf("w"), {"slots": [(1, "m", 3)]}, leaf(key))

    with pytest.raises(ValueError, match="'opt, slot m of w' is 'k1' in object graph 0 and 'k2' in object graph 1"):
        merge_object_graphs([build("k1"), build("k2")])


def test_one_object_that_is_two_with_values_of_their_own_elsewhere_is_a_contradiction() -> None:
    apart = graph({"children": {"p": 1, "q": 2}}, leaf("p"), leaf("q"))
    tied = graph({"children": {"p": 1, "q": 1}}, leaf("p"))
    for graphs in ([apart, tied], [tied, apart]):
        with pytest.raises(ValueError, match="'q'") as caught:
            merge_object_graphs(graphs)
        assert "object graph 0" in str(caught.value)
        assert "object graph 1" in str(caught.value)


def test_one_object_that_is_two_without_values_elsewhere_gets_the_children_under_both_paths() -> None:
    apart = graph({"children": {"p": 1, "q": 2}}, {"children": {"x": 3}}, {}, leaf("x"))
    tied = graph({"children": {"p": 1, "q": 1}}, {"children": {"y": 2}}, leaf("y"))
    merged = message(merge_object_graphs([apart, tied]))
    below = [{child.local_name: child.node_id for child in merged.nodes[node].children} for node in (1, 2)]
    assert below == [{"x": 3, "y": 4}] * 2
    assert len(merged.nodes) == 5


def field(number: int, content: bytes) -> bytes:
    """An unknown field of bytes, of a number above 15."""
    assert len(content) < 128
    return bytes([number << 3 & 0x7F | 0x82, number >> 4, len(content)]) + content


def test_fields_that_are_not_known_here_survive_byte_for_byte() -> None:
    def build(name: str, extra: bytes) -> bytes:
        made = message(graph({"children": {name: 1}}, leaf(name)))
        made.nodes[0].children[0].MergeFromString(field(100, b"of a reference " + extra))
        made.nodes[1].MergeFromString(field(101, b"of an object " + extra))
        made.nodes[1].attributes[0].MergeFromString(field(102, b"of an attribute " + extra))
        made.nodes[0].MergeFromString(field(103, b"of the root " + extra))
        return field(104, b"of the graph " + extra) + made.SerializeToString() + field(105 + extra[0] % 2, extra)

    merged = merge_object_graphs([build("a", b"0"), build("b", b"1"), build("b", b"3")])
    assert message(merged).ByteSize() == len(merged)
    for kept in (b"of a reference ", b"of an object ", b"of an attribute "):
        assert kept + b"0" in merged
        assert kept + b"1" in merged
    for once in (b"of the root ", b"of the graph "):  # the base's, since a field may be one that occurs once
        assert once + b"0" in merged
        assert once + b"1" not in merged
    assert merged.startswith(field(104, b"of the graph 0"))
    assert merged.endswith(field(106, b"1"))
    assert b" 3" not in merged
    assert field(106, b"3") not in merged


@pytest.mark.parametrize(
    "unknown",
    [
        pytest.param(b"\xf8\x07\xac\x02", id="varint"),
        pytest.param(b"\xf9\x07" + bytes(8), id="eight bytes"),
        pytest.param(b"\xfa\x07\x03abc", id="chunk"),
        pytest.param(b"\xfd\x07" + bytes(4), id="four bytes"),
    ],
)
def test_unknown_fields_of_every_wire_type_go_with_a_new_object(unknown: bytes) -> None:
    later = message(graph({"children": {"a": 1}}, leaf("a")))
    later.nodes[1].MergeFromString(unknown)
    node = message(merge_object_graphs([graph({}), later.SerializeToString()])).nodes[1]
    assert node.SerializeToString() == later.nodes[1].SerializeToString()


def test_objects_without_a_path_are_left_where_they_are() -> None:
    base = graph({"children": {"a": 1}}, leaf("a"), leaf("lost"))
    later = graph({"children": {"b": 1}, "slots": [(2, "m", 3)]}, leaf("b"), leaf("gone"), leaf("gone/m"))
    merged = merge_object_graphs([base, later])
    keys = [node.attributes[0].checkpoint_key for node in message(merged).nodes[1:]]
    assert keys == ["a", "lost", "b"]
    assert not message(merged).nodes[0].slot_variables
    assert merge_object_graphs([merged, later]) == merged


def test_two_children_by_one_name_are_one_object() -> None:
    twice = message(graph({"children": {"a": 1}}, {}, {"children": {"x": 3}}, leaf("x")))
    twice.nodes[0].children.add(local_name="a", node_id=2)
    base = graph({"children": {"a": 1}}, {})
    merged = merge_object_graphs([base, twice.SerializeToString()])
    assert merge_object_graphs([twice.SerializeToString()]) == twice.SerializeToString()
    assert [len(node.children) for node in message(merged).nodes] == [1, 1, 0]
    assert merge_object_graphs([merged, twice.SerializeToString()]) == merged
    contrary = graph({"children": {"a": 1, "b": 2}}, leaf("a"), leaf("b")).replace(b"\x12\x01b", b"\x12\x01a")
    assert merge_object_graphs([contrary]) == contrary
    with pytest.raises(ValueError, match="'a'"):
        merge_object_graphs([contrary, graph({})])


def test_two_slots_by_one_name_are_one_variable() -> None:
    later = graph(
        {"children": {"w": 1}, "slots": [(1, "m", 2), (1, "m", 3)]}, leaf("w"), leaf("m"), {"keys": {"x": "k"}}
    )
    nodes = message(merge_object_graphs([graph({}), later])).nodes
    assert [slot.slot_variable_node_id for slot in nodes[0].slot_variables] == [2]
    assert [attribute.name for attribute in nodes[2].attributes] == [VALUE, "x"]
    assert len(nodes) == 3


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        pytest.param(b"", "no root", id="empty"),
        pytest.param(b"\x0a\x05\x0a", "ends inside", id="cut"),
        pytest.param(b"\x0a\x03\x0a\x05\x08", "node 0.*ends inside", id="reference cut"),
        pytest.param(b"\x0a\x03\x0a\x01\x08", "node 0.*ends inside", id="node of a child cut"),
        pytest.param(b"\x0a\x00\x0b\x0c", "wire type 3", id="group"),
        pytest.param(graph({"children": {"a": 1}}), "node 0 refers to", id="no such child"),
        pytest.param(graph({"children": {"a": -1}}), "node 0 refers to", id="negative child"),
        pytest.param(graph({}, {"slots": [(2, "m", 0)]}), "node 1 refers to", id="no such variable"),
        pytest.param(graph({}, {"slots": [(0, "m", 2)]}), "node 1 refers to", id="no such slot"),
        pytest.param(graph(leaf("key")).replace(b"key", b"k\xff."), "not UTF-8", id="no text"),
        pytest.param(graph({"keys": {"x": "k1", "y": "k2"}}).replace(b"y", b"x"), "two checkpoint keys", id="two keys"),
    ],
)
def test_what_is_no_graph_is_corrupt_and_named(data: bytes, cause: str) -> None:
    for graphs in ([data], [graph({}), data], [data, graph({})]):
        with pytest.raises(CorruptError, match=f"object graph {graphs.index(data)}.*{cause}"):
            merge_object_graphs(graphs)


def test_no_graphs_are_no_graph() -> None:
    with pytest.raises(ValueError, match="no object graphs"):
        merge_object_graphs([])


FULL = graph(
    {"children": {"w": 1, "opt": 2}, "values": True},
    leaf("w"),
    {"slots": [(1, "m", 3)], "saver": ("A", "x")},
    leaf("m"),
)


@given(st.integers(0, len(FULL) - 1), st.binary(max_size=6), st.integers(0, 6))
def test_damaged_graphs_are_merged_or_refused(position: int, damage: bytes, drop: int) -> None:
    damaged = FULL[:position] + damage + FULL[position + drop :]
    for graphs in ([FULL, damaged], [damaged, FULL]):
        with contextlib.suppress(ValueError):  # CorruptError is one
            merged = merge_object_graphs(graphs)
            assert merge_object_graphs([merged, *graphs]) == merged


def test_cycles_of_different_lengths_take_linear_time() -> None:
    """The pairs of nodes that share a path are 900 million."""
    cycles = [graph(*({"children": {"next": (node + 1) % size}} for node in range(size))) for size in (30_000, 30_001)]
    assert merge_object_graphs(cycles) == cycles[0]


@dataclass(frozen=True)
class World:
    """Objects by number, the first the root: `edges` lead from (object, name) to an object, `keys` are those of
    (object, attribute), and `slots` those of (optimizer, variable, name)."""

    edges: Mapping[tuple[int, str], int]
    keys: Mapping[tuple[int, str], str]
    slots: Mapping[tuple[int, int, str], str]

    def paths(self, longest: int) -> list[tuple[str, int]]:
        found = [("", 0)]
        for path, node in found:
            if path.count("/") < longest:
                found += [(f"{path}/{name}", child) for (parent, name), child in self.edges.items() if parent == node]
        return found

    def says(self, longest: int) -> set[tuple[str, ...]]:
        """What TensorFlow can find: keys by path and attribute, and by the paths of a slot."""
        paths = self.paths(longest)
        said = {(path, name, key) for path, node in paths for (owner, name), key in self.keys.items() if owner == node}
        for (optimizer, variable, name), key in self.slots.items():
            owners, variables = ([path for path, node in paths if node == wanted] for wanted in (optimizer, variable))
            said |= {(owner, name, path, key) for owner in owners for path in variables}
        return said

    def graph(self, order: Sequence[int]) -> bytes:
        """The graph of what has a path, its nodes in this order behind the root, with slot variables at the end."""
        reached = self.reached()
        ids = {node: number for number, node in enumerate([0, *(node for node in order if node in reached)])}
        made = TrackableObjectGraph()
        for node in ids:
            added = made.nodes.add()
            for (parent, name), child in self.edges.items():
                if parent == node:
                    added.children.add(local_name=name, node_id=ids[child])
            for (owner, name), key in self.keys.items():
                if owner == node:
                    added.attributes.add(name=name, checkpoint_key=key)
        for (optimizer, variable, name), key in self.slots.items():
            if optimizer in ids and variable in ids:
                made.nodes[ids[optimizer]].slot_variables.add(
                    original_variable_node_id=ids[variable], slot_name=name, slot_variable_node_id=len(made.nodes)
                )
                made.nodes.add().attributes.add(name=VALUE, checkpoint_key=key)
        add_checkpoint_values_check(made)
        return made.SerializeToString(deterministic=True)

    def reached(self) -> set[int]:
        reached = {0}
        while more := {child for (parent, _), child in self.edges.items() if parent in reached} - reached:
            reached |= more
        return reached


def world_of(data: bytes) -> World:
    nodes = message(data).nodes
    return World(
        {(number, child.local_name): child.node_id for number, node in enumerate(nodes) for child in node.children},
        {(number, one.name): one.checkpoint_key for number, node in enumerate(nodes) for one in node.attributes},
        {
            (number, slot.original_variable_node_id, slot.slot_name): nodes[slot.slot_variable_node_id]
            .attributes[0]
            .checkpoint_key
            for number, node in enumerate(nodes)
            for slot in node.slot_variables
        },
    )


@st.composite
def views(draw: st.DrawFn, *, tree: bool) -> tuple[World, list[bytes]]:
    """A world, and the graphs of workers that each hold a part of it, in an order of their own."""
    size = draw(st.integers(1, 8))
    nodes = st.integers(0, size - 1)
    if tree:
        edges = {(draw(st.integers(0, child - 1)), f"c{child}"): child for child in range(1, size)}
    else:
        edges = draw(st.dictionaries(st.tuples(nodes, st.sampled_from("abc")), nodes, max_size=12))
    keys = {(node, name): f"{node}.{name}" for node, name in draw(st.sets(st.tuples(nodes, st.sampled_from("xy"))))}
    slots = draw(st.sets(st.tuples(nodes, nodes, st.sampled_from("mv")), max_size=4))
    world = World(edges, keys, {slot: "{}.{}.{}".format(*slot) for slot in slots})
    graphs = []
    for _ in range(draw(st.integers(1, 4))):
        edges, keys, slots = (
            {key: value for key, value in one.items() if draw(st.booleans())}
            for one in (world.edges, world.keys, world.slots)
        )
        graphs.append(World(edges, keys, slots).graph(draw(st.permutations(range(1, size)))))
    return world, graphs


@given(views(tree=True))
def test_the_merged_graph_says_what_all_say_together(example: tuple[World, list[bytes]]) -> None:
    _, graphs = example
    merged = world_of(merge_object_graphs(graphs))
    # A slot that one graph has for a variable lies between paths that its own graph has, too.
    assert merged.says(8) == set().union(*(world_of(data).says(8) for data in graphs))


@given(views(tree=False))
def test_with_shared_objects_and_cycles_nothing_is_lost_and_nothing_invented(
    example: tuple[World, list[bytes]],
) -> None:
    world, graphs = example
    merged = world_of(merge_object_graphs(graphs)).says(4)
    assert merged >= set().union(*(world_of(data).says(4) for data in graphs))
    assert merged <= world.says(4)


@given(views(tree=False))
def test_merging_is_idempotent_appends_only_and_knows_what_has_values(example: tuple[World, list[bytes]]) -> None:
    _, graphs = example
    merged = merge_object_graphs(graphs)
    assert merge_object_graphs([merged, *graphs]) == merge_object_graphs([merged, merged]) == merged
    for node in message(merged).nodes:
        for names in (node.children, node.attributes, node.slot_variables):
            said = [str(one) for one in names]
            assert len(said) == len(set(said))
    for old, new in zip(message(graphs[0]).nodes, message(merged).nodes, strict=False):
        for name in ("children", "attributes", "slot_variables"):
            assert list(getattr(old, name)) == list(getattr(new, name))[: len(getattr(old, name))]
    checked = message(merged)
    add_checkpoint_values_check(checked)
    assert checked == message(merged)
