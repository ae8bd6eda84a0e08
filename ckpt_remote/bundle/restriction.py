"""Restricts an object graph to the objects that a program has, so that nothing else need be fetched.

    kept, owners = restrict_object_graph(graph, checkpoint, tf.train.TrackableView.children)
    owner_of(name) in owners

Promises: an object that the program has, by the names that lead to it from the root, keeps all that the graph says of
its values; so does a slot variable whose optimizer and variable the program has. Nothing refers to any other, so that
objects created later begin with their initial values. It looks at no tensor.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from ckpt_remote.bundle.graph_messages import (
    NODE,
    Node,
    ObjectGraph,
    decode_graph,
    encode_child,
    encode_has_values,
    encode_node,
    encode_slot,
)

__all__ = ["owner_of", "restrict_object_graph"]

T = TypeVar("T")

# Between an object's path and what it calls its value (trackable_utils.py); to that some savers add what they like.
_ATTRIBUTES = "/.ATTRIBUTES/"


def restrict_object_graph(
    graph: bytes, root: T, children: Callable[[T], Mapping[str, T]]
) -> tuple[bytes, frozenset[str]]:
    """Return the graph with the values of present objects only, and the owners of these values.

    Args:
        graph: A serialized graph.
        root: The object that its first node stands for.
        children: Names the objects that one refers to.

    Raises:
        CorruptError: `graph` is no object graph.
    """
    decoded = decode_graph(graph, 0, {})
    present = _find_present(decoded, root, children)
    numbers = iter(range(len(decoded.nodes)))
    fields = []
    for tag, _, raw in decoded.fields:
        number = next(numbers) if tag == NODE else None
        fields.append(raw if number is None else _encode(number, decoded.nodes[number], raw, present))
    owners = {owner_of(key) for number in present for key, _ in decoded.nodes[number].attributes.values()}
    return b"".join(fields), frozenset(owners)


def owner_of(name: str) -> str:
    """Return the path of the object that a tensor belongs to."""
    return name.rpartition(_ATTRIBUTES)[0]


def _find_present(graph: ObjectGraph, root: T, children: Callable[[T], Mapping[str, T]]) -> frozenset[int]:
    """The nodes of what the program has; slot variables included, which are nobody's children."""
    pairs: list[tuple[int, T]] = [(0, root)]
    known = {(0, id(root))}
    for number, it in pairs:
        named = children(it) if graph.nodes[number].children else {}
        for name, (child, _) in graph.nodes[number].children.items():
            if name in named and (child, id(named[name])) not in known:
                known.add((child, id(named[name])))
                pairs.append((child, named[name]))
    present = {number for number, _ in pairs}
    slots = {
        slot
        for number in present
        for (variable, _), (slot, _) in graph.nodes[number].slots.items()
        if variable in present
    }
    return frozenset(present | slots)


def _encode(number: int, node: Node, raw: bytes, present: frozenset[int]) -> bytes:
    if number not in present:
        return encode_node(encode_has_values(value=False))
    children = [(child, rest) for child, rest in node.children.values() if child in present]
    slots = [(variable, rest, slot) for (variable, _), (slot, rest) in node.slots.items() if variable in present]
    if len(children) == len(node.children) and len(slots) == len(node.slots):
        return raw
    fields = [
        *(encode_child(*child) for child in children),
        *(attribute for _, attribute in node.attributes.values()),
        *(encode_slot(*slot) for slot in slots),
        node.saver[2] if node.saver else b"",
        encode_has_values(value=bool(node.has_values)),
        *node.unknown.values(),
    ]
    return encode_node(b"".join(fields))
