"""Of an object graph, what a program has objects for: TensorFlow's own message is the judge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from ckpt_remote.bundle import owner_of, restrict_object_graph
from ckpt_remote.errors import CorruptError

KEY = "{}/.ATTRIBUTES/VARIABLE_VALUE"


@st.composite
def graphs(draw):
    """A graph of up to nine objects that refer to each other in any way, in circles too; each has a value."""
    size = draw(st.integers(1, 9))
    graph = TrackableObjectGraph()
    for number in range(size):
        node = graph.nodes.add()
        node.has_checkpoint_values.value = True
        node.attributes.add(name="VARIABLE_VALUE", checkpoint_key=KEY.format(f"object{number}"))
        for name in draw(st.sets(st.sampled_from("abcd"))):
            node.children.add(local_name=name, node_id=draw(st.integers(0, size - 1)))
        for name in draw(st.sets(st.sampled_from(["m", "v"]), max_size=1)):
            variable, slot = (draw(st.integers(0, size - 1)) for _ in range(2))
            node.slot_variables.add(slot_name=name, original_variable_node_id=variable, slot_variable_node_id=slot)
    return graph


def names(graph):
    """What a program has that has all of it: each object by its number."""
    return {number: {it.local_name: it.node_id for it in node.children} for number, node in enumerate(graph.nodes)}


def restricted(graph, children):
    data, owners = restrict_object_graph(graph.SerializeToString(), 0, lambda it: children.get(it, {}))
    return TrackableObjectGraph.FromString(data), owners


def reachable(graph, children):
    found = [0]
    for number in found:
        for name, child in children.get(number, {}).items():
            if {name: child}.items() <= names(graph)[number].items() and child not in found:
                found.append(child)
    slots = [
        slot.slot_variable_node_id
        for number in found
        for slot in graph.nodes[number].slot_variables
        if slot.original_variable_node_id in found
    ]
    return {*found, *slots}


@given(graph=graphs(), data=st.data())
def test_what_the_program_has_keeps_its_values_and_nothing_refers_to_anything_else(graph, data):
    has = {
        number: {name: child for name, child in children.items() if data.draw(st.booleans())}
        for number, children in names(graph).items()
    }
    kept, owners = restricted(graph, has)
    present = reachable(graph, has)

    assert {f"object{number}" for number in present} == owners
    assert len(graph.nodes) == len(kept.nodes)
    for number, (node, before) in enumerate(zip(kept.nodes, graph.nodes, strict=True)):
        if number in present:
            assert list(before.attributes) == list(node.attributes)
            assert {it.local_name for it in before.children if it.node_id in present} == {
                it.local_name for it in node.children
            }
            assert all(it in before.slot_variables for it in node.slot_variables)
        else:
            assert not [*node.attributes, *node.children, *node.slot_variables]
            assert not node.has_checkpoint_values.value


@given(graph=graphs())
def test_for_a_program_that_has_all_nothing_changes_but_what_nobody_reaches(graph):
    kept, _ = restricted(graph, names(graph))
    for number in reachable(graph, names(graph)):
        children = {it.node_id for it in graph.nodes[number].children}
        slots = {it.original_variable_node_id for it in graph.nodes[number].slot_variables}
        if children | slots <= reachable(graph, names(graph)):
            assert graph.nodes[number] == kept.nodes[number]


def test_the_registered_saver_of_an_object_and_fields_of_later_releases_stay():
    graph = TrackableObjectGraph()
    for _ in range(3):
        graph.nodes.add().registered_saver.name = "saver"
    graph.nodes[0].children.add(local_name="a", node_id=1)
    graph.nodes[0].children.add(local_name="b", node_id=2)
    later = TrackableObjectGraph.FromString(graph.SerializeToString() + b"\xfa\x01\x03new")
    kept, _ = restricted(later, {0: {"a": 1}})

    assert ["saver", "saver", ""] == [node.registered_saver.name for node in kept.nodes]
    assert kept.SerializeToString().endswith(b"\xfa\x01\x03new")


@given(data=st.binary(max_size=40))
def test_what_is_no_object_graph_is_corrupt(data):
    try:
        TrackableObjectGraph.FromString(data)
    except Exception:  # noqa: BLE001 - whatever protobuf raises
        with pytest.raises(CorruptError):
            restrict_object_graph(data, 0, lambda it: {})


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        (KEY.format("model/layer"), "model/layer"),
        (KEY.format("v/.OPTIMIZER_SLOT/adam/m"), "v/.OPTIMIZER_SLOT/adam/m"),
        ("table/.ATTRIBUTES/table-keys", "table"),
        ("batches/.ATTRIBUTES/ITERATOR_STATE", "batches"),
        ("name_based/kernel", ""),
    ],
)
def test_a_tensor_belongs_to_the_object_whose_path_it_begins_with(name, owner):
    assert owner == owner_of(name)
