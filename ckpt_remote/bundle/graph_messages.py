"""The messages of an object graph, TrackableObjectGraph in trackable_object_graph.proto, encoded by hand.

Promises: what is written is TensorFlow's encoding of it. What is read may be hostile: it is decoded in time and
memory linear in its size, or refused with `CorruptError`. Fields that are not known here are kept as they stand,
so that those of newer releases survive.

Decodes what merging needs: of an attribute's fields, for one, name and key.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_remote.bundle.wire import (
    BYTES,
    CONTINUES,
    FIXED32,
    FIXED64,
    VARINT,
    encode_chunk,
    encode_number,
    make_tag,
    read_varint,
)
from ckpt_remote.errors import CorruptError

__all__ = [
    "NODE",
    "NOTHING",
    "Node",
    "ObjectGraph",
    "decode_graph",
    "encode_child",
    "encode_has_values",
    "encode_node",
    "encode_slot",
]

NODE = make_tag(1, BYTES)
"""The tag of a graph's nodes."""

_CHILD = make_tag(1, BYTES)
_ATTRIBUTE = make_tag(2, BYTES)
_SLOT = make_tag(3, BYTES)
_SAVER = make_tag(4, BYTES)
_HAS_VALUES = make_tag(5, BYTES)

_CHILD_NODE = make_tag(1, VARINT)
_CHILD_NAME = make_tag(2, BYTES)
_ATTRIBUTE_NAME = make_tag(1, BYTES)
_CHECKPOINT_KEY = make_tag(3, BYTES)
_SLOT_VARIABLE = make_tag(1, VARINT)
_SLOT_NAME = make_tag(2, BYTES)
_SLOT_NODE = make_tag(3, VARINT)
_SAVER_NAME = make_tag(1, BYTES)
_SAVER_OBJECT = make_tag(2, BYTES)
_TRUTH = make_tag(1, VARINT)

_TRUE = encode_number(_TRUTH, 1)

# Tag, number (of a chunk its length), chunk, and the whole field as it stands.
_Field = tuple[int, int, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Node:
    """TrackableObject: what a graph says of one object.

    Attributes:
        children: By name, a child's node and the other fields of the reference.
        attributes: By name, an attribute's checkpoint key and its field.
        slots: By variable's node and slot name, a slot variable's node and the other fields of the reference.
        saver: The registered saver's name, its name for the object, and its field; or None.
        has_values: Whether a restore waits for the object if it does not exist yet. What TensorFlow takes for
            it where the graph does not say; None in `NOTHING` only.
        unknown: By tag, the fields that are not known here.
    """

    children: dict[str, tuple[int, bytes]]
    attributes: dict[str, tuple[str, bytes]]
    slots: dict[tuple[int, str], tuple[int, bytes]]
    saver: tuple[str, str, bytes] | None
    has_values: bool | None
    unknown: dict[int, bytes]


NOTHING = Node({}, {}, {}, None, None, {})
"""What a graph says of an object that it does not have."""


@dataclass(frozen=True, slots=True)
class ObjectGraph:
    """TrackableObjectGraph.

    Attributes:
        first: The number of the first node, the root.
        nodes: The objects, numbered from there.
        twins: Pairs of nodes to which one node refers by the same name. TensorFlow makes none.
        fields: Tag, chunk and the whole of each field as it stands, nodes among them.
    """

    first: int
    nodes: list[Node]
    twins: list[tuple[int, int]]
    fields: list[tuple[int, bytes, bytes]]

    def path(self, node: int) -> str:
        """Return a shortest path to `node`, the names that lead to it from the root; for errors."""
        origins: dict[int, tuple[int, str]] = {}
        order = [self.first]
        for parent in order:
            for name, (child, _) in self.nodes[parent - self.first].children.items():
                if child != self.first and child not in origins:
                    origins[child] = parent, name
                    order.append(child)
        for optimizer in order:
            for (variable, name), (slot, _) in self.nodes[optimizer - self.first].slots.items():
                if slot == node and slot not in origins:
                    return f"{_join(origins, optimizer)}, slot {name} of {_join(origins, variable)}"
        return _join(origins, node)


def decode_graph(data: bytes, first: int, leaves: dict[bytes, Node]) -> ObjectGraph:
    """Return the graph in `data`.

    Args:
        data: The serialized graph.
        first: The number that its root gets, so that nodes of several graphs can be told apart.
        leaves: Nodes that refer to none, by their bytes: nearly all, and alike in the graphs of all workers. New
            ones are added.

    Raises:
        CorruptError: `data` is not an object graph.
    """
    fields = [(tag, chunk, raw) for tag, _, chunk, raw in _read_fields(data)]
    chunks = [chunk for tag, chunk, _ in fields if tag == NODE]
    if not chunks:
        raise CorruptError("it has no root")
    numbers = range(first, first + len(chunks))
    nodes: list[Node] = []
    twins: list[tuple[int, int]] = []
    try:
        for chunk in chunks:
            node = leaves.get(chunk)
            if node is None:
                node = _decode_node(chunk, numbers, twins)
                if not node.children and not node.slots:
                    leaves[chunk] = node
            nodes.append(node)
    except UnicodeDecodeError as error:
        raise CorruptError(f"its node {len(nodes)} has a name that is not UTF-8") from error
    except IndexError as error:
        raise CorruptError(f"its node {len(nodes)} refers to one that is not among its {len(chunks)}") from error
    except CorruptError as error:
        raise CorruptError(f"its node {len(nodes)}: {error}") from error
    return ObjectGraph(first, nodes, twins, fields)


def _join(origins: Mapping[int, tuple[int, str]], node: int) -> str:
    """Return the names that lead to a node, of the parent and the name of each."""
    names: list[str] = []
    while node in origins:
        node, name = origins[node]
        names.append(name)
    return "/".join(reversed(names)) or "(root)"


def encode_node(content: bytes) -> bytes:
    """Return the field of a node with these fields."""
    return encode_chunk(NODE, content)


def encode_child(node: int, rest: bytes) -> bytes:
    """Return the field of a reference to a child, of its node and its other fields."""
    return encode_chunk(_CHILD, _number(_CHILD_NODE, node) + rest)


def encode_slot(variable: int, rest: bytes, node: int) -> bytes:
    """Return the field of a reference to a slot variable, of the nodes and the other fields."""
    return encode_chunk(_SLOT, _number(_SLOT_VARIABLE, variable) + rest + _number(_SLOT_NODE, node))


def encode_has_values(*, value: bool) -> bytes:
    """Return the field that says whether an object has values; behind another it prevails if true."""
    return encode_chunk(_HAS_VALUES, _TRUE if value else b"")


def _number(tag: int, value: int) -> bytes:
    # protobuf omits fields that are zero.
    return encode_number(tag, value) if value else b""


def _decode_node(data: bytes, numbers: range, twins: list[tuple[int, int]]) -> Node:
    """Return the node in `data`, and append the twins in it. A node that is not in `numbers` is an `IndexError`."""
    children: dict[str, tuple[int, bytes]] = {}
    attributes: dict[str, tuple[str, bytes]] = {}
    slots: dict[tuple[int, str], tuple[int, bytes]] = {}
    others: dict[int, list[bytes]] = {}
    single: dict[int, list[bytes]] = {}  # contents, which protobuf joins where a field occurs twice
    for tag, _, chunk, raw in _read_fields(data):
        if tag == _CHILD:
            name, (node,), rest = _decode_reference(chunk, _CHILD_NAME, (_CHILD_NODE,))
            child = children.setdefault(name, (numbers[node], rest))
            if child[0] != numbers[node]:
                twins.append((child[0], numbers[node]))
        elif tag == _ATTRIBUTE:
            name, key = _decode_names(chunk, _ATTRIBUTE_NAME, _CHECKPOINT_KEY)
            known, _ = attributes.setdefault(name, (key, raw))
            if known != key:
                raise CorruptError(f"its attribute {name!r} has two checkpoint keys, {known!r} and {key!r}")
        elif tag == _SLOT:
            name, (variable, node), rest = _decode_reference(chunk, _SLOT_NAME, (_SLOT_VARIABLE, _SLOT_NODE))
            slot = slots.setdefault((numbers[variable], name), (numbers[node], rest))
            if slot[0] != numbers[node]:
                twins.append((slot[0], numbers[node]))
        else:
            others.setdefault(tag, []).append(raw)
            if tag in (_SAVER, _HAS_VALUES):
                single.setdefault(tag, []).append(chunk)
    unknown = {tag: b"".join(fields) for tag, fields in others.items()} if others else {}
    saver = None
    if saver_field := unknown.pop(_SAVER, b""):
        saver = (*_decode_names(b"".join(single[_SAVER]), _SAVER_NAME, _SAVER_OBJECT), saver_field)
    has_values = bool(children or attributes or slots or saver)
    if unknown.pop(_HAS_VALUES, b""):
        has_values = _decode_truth(b"".join(single[_HAS_VALUES]))
    return Node(children, attributes, slots, saver, has_values, unknown)


def _decode_reference(data: bytes, name_tag: int, node_tags: tuple[int, ...]) -> tuple[str, list[int], bytes]:
    """Return a reference's name, its nodes in the order of their tags, and its fields without the nodes."""
    name = b""
    nodes = dict.fromkeys(node_tags, 0)
    rest: list[bytes] = []
    for tag, number, chunk, raw in _read_fields(data):
        if tag in nodes:
            nodes[tag] = number
            continue
        if tag == name_tag:
            name = chunk
        rest.append(raw)
    return name.decode(), list(nodes.values()), b"".join(rest)


def _decode_names(data: bytes, one: int, other: int) -> tuple[str, str]:
    """Return the texts of two tags."""
    names = {one: b"", other: b""}
    for tag, _, chunk, _ in _read_fields(data):
        if tag in names:
            names[tag] = chunk
    return names[one].decode(), names[other].decode()


def _decode_truth(data: bytes) -> bool:
    """Return the value of a BoolValue."""
    if data == _TRUE:
        return True
    truth = 0
    for tag, number, _, _ in _read_fields(data):
        if tag == _TRUTH:
            truth = number
    return bool(truth)


def _read_fields(data: bytes) -> list[_Field]:
    """Return the fields of a message in order."""
    fields: list[_Field] = []
    start, end = 0, len(data)
    try:
        while start < end:
            # A varint is nearly always one byte, and a graph has millions.
            tag, position = data[start], start + 1
            if tag >= CONTINUES:
                tag, position = read_varint(data, start)
            number, chunk = 0, b""
            wire_type = tag & 7
            if wire_type in (VARINT, BYTES):
                number = data[position]
                position += 1
                if number >= CONTINUES:
                    number, position = read_varint(data, position - 1)
                if wire_type == BYTES:
                    chunk = data[position : position + number]
                    position += number
            elif wire_type in (FIXED32, FIXED64):
                position += 4 if wire_type == FIXED32 else 8
            else:
                raise CorruptError(f"it has a field of wire type {wire_type}")
            fields.append((tag, number, chunk, data[start:position]))
            start = position
    except IndexError:
        start = end + 1
    if start > end:
        raise CorruptError("it ends inside a field")
    return fields
