"""Merges the object graphs of workers that save one checkpoint together.

A checkpoint of `tf.train.Checkpoint` holds, in the string tensor `OBJECT_GRAPH`, which objects there were, by
which names they refer to each other, and under which keys their values are stored. TensorFlow restores no object
that it does not find there.

Promises: an object is known by its paths, the names of the children that lead to it from the root, and a slot
variable by its optimizer, variable and name. What any graph says of an object, the merged one says. The first
graph is the base: its nodes keep their ids and their bytes, with additions behind, and it wins where a
contradiction does no harm. Time and memory are about linear in the size of the graphs, which may be hostile.

Does not carry over what has no path, nor look at the tensors: whether the keys exist is for the index to say.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_remote.bundle.graph_messages import (
    NODE,
    NOTHING,
    Node,
    ObjectGraph,
    decode_graph,
    encode_child,
    encode_has_values,
    encode_node,
    encode_slot,
)
from ckpt_remote.errors import CorruptError

__all__ = ["OBJECT_GRAPH", "merge_object_graphs"]

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The name of the tensor that holds the graph: one string, of shape ()."""


def merge_object_graphs(graphs: Sequence[bytes]) -> bytes:
    """Return one graph with every object of `graphs`, so that each worker finds its own in it.

    If the first graph has all that the others have, exactly its bytes come back. Objects that it lacks follow
    its last node, those of earlier graphs first.

    Where one graph has a single object under two paths and another has two, they are taken for one: both nodes
    of the base get the same children and attributes.

    Args:
        graphs: Serialized graphs, in the order of the workers.

    Raises:
        CorruptError: One is no object graph.
        ValueError: An attribute of one object has different checkpoint keys, or the object different registered
            savers; or there are no graphs.
    """
    if not graphs:
        raise ValueError("there are no object graphs to merge; give that of every worker")
    decoded: dict[bytes, ObjectGraph] = {}
    numbers: list[int] = []
    leaves: dict[bytes, Node] = {}
    first = 0
    for number, data in enumerate(graphs):
        if data in decoded:
            continue  # workers that hold the same objects send equal graphs
        try:
            decoded[data] = decode_graph(data, first, leaves)
        except CorruptError as error:
            raise CorruptError(f"object graph {number}: {error}; its worker has to save again") from error
        numbers.append(number)
        first += len(decoded[data].nodes)
    return graphs[0] if len(decoded) == 1 else _Merge(list(decoded.values()), numbers).encode()


@dataclass(slots=True)
class _Object:
    """What the nodes of an object say of it together: see `Node`. Its slots are known by the variable's set."""

    first: Node
    children: dict[str, tuple[int, bytes]]
    attributes: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    slots: dict[tuple[int, str], tuple[int, bytes]] = field(default_factory=dict)
    saver: tuple[str, str, bytes] | None = None
    has_values: bool = False
    unknown: dict[int, bytes] = field(default_factory=dict)


class _Merge:
    """Finds the nodes that are one object, and gathers what they say of it.

    That is a congruence closure: the roots are one object, and children by the same name of one object are one
    object. The nodes of one object are a set in a union-find forest, called by the number of its root.
    """

    def __init__(self, graphs: Sequence[ObjectGraph], numbers: Sequence[int]) -> None:
        self._graphs = graphs
        self._numbers = numbers
        self._nodes = [node for graph in graphs for node in graph.nodes]
        self._parents = list(range(len(self._nodes)))
        self._children = [dict(node.children) for node in self._nodes]
        self._unite([(0, graph.first) for graph in graphs])
        self._unite([pair for graph in graphs for pair in graph.twins])
        self._unite_slots()
        self._objects: dict[int, _Object] = {}
        self._gather()
        self._spread_values()
        self._ids: dict[int, int] = {}
        self._added: list[_Object] = []
        self._assign_ids()

    def encode(self) -> bytes:
        """Return the merged graph."""
        base, *others = self._graphs
        fields: list[bytes] = []
        nodes = enumerate(base.nodes)
        for tag, chunk, raw in base.fields:
            more = b""
            if tag == NODE:
                number, node = next(nodes)
                more = self._encode_lacking(self._objects[self._find(number)], node)
            fields.append(encode_node(chunk + more) if more else raw)
        fields.extend([encode_node(self._encode_lacking(added, NOTHING)) for added in self._added])
        known = {tag for tag, _, _ in base.fields}
        for graph in others:
            fields.extend([raw for tag, _, raw in graph.fields if tag not in known])
            known.update([tag for tag, _, _ in graph.fields])
        return b"".join(fields)

    def _find(self, node: int) -> int:
        """Return the set that holds `node`."""
        parents = self._parents
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    def _unite(self, pairs: list[tuple[int, int]]) -> None:
        """Join the sets of each pair, then those of their children by the same name, and so on."""
        while pairs:
            small, large = map(self._find, pairs.pop())
            if small == large:
                continue
            if len(self._children[small]) > len(self._children[large]):
                small, large = large, small
            self._parents[small] = large
            children = self._children[large]
            for name, reference in self._children[small].items():
                known = children.setdefault(name, reference)
                if known is not reference:
                    pairs.append((known[0], reference[0]))
                    children[name] = min(known, reference)  # the earlier graph's
            self._children[small] = {}

    def _unite_slots(self) -> None:
        """Join the slot variables that an optimizer has by the same name for the same variable."""
        known: dict[tuple[int, int, str], int] = {}
        for number, node in enumerate(self._nodes):
            for (variable, name), (slot, _) in node.slots.items():
                key = self._find(number), self._find(variable), name
                self._unite([(known.setdefault(key, slot), slot)])

    def _gather(self) -> None:
        """Gather what its nodes say of each object, those of earlier graphs first."""
        for number, node in enumerate(self._nodes):
            root = self._find(number)
            one = self._objects.get(root)
            if one is None:
                one = self._objects[root] = _Object(node, self._children[root])
            elif node is one.first:
                continue
            for name, attribute in node.attributes.items():
                if one.attributes.setdefault(name, attribute)[0] != attribute[0]:
                    keys = {n: other.attributes[name][:1] for n, other in self._alike(root) if name in other.attributes}
                    raise self._contradiction(f"the checkpoint key of attribute {name!r}", keys, number)
            for (variable, name), slot in node.slots.items():
                one.slots.setdefault((self._find(variable), name), slot)
            if node.saver is not None:
                one.saver = one.saver or node.saver
                if one.saver[:2] != node.saver[:2]:
                    savers = {n: other.saver[:2] for n, other in self._alike(root) if other.saver is not None}
                    raise self._contradiction("the registered saver", savers, number)
            for tag, raw in node.unknown.items():
                one.unknown.setdefault(tag, raw)
            one.has_values |= bool(node.has_values)

    def _spread_values(self) -> None:
        """Where a graph learns that an object has values, so has all that refers to it, as TensorFlow has it."""
        doubted = {self._find(number) for number, node in enumerate(self._nodes) if not node.has_values}
        learned = [root for root in doubted if self._objects[root].has_values]
        if not learned:
            return
        referring: dict[int, list[int]] = defaultdict(list)
        for root, one in self._objects.items():
            for child, _ in one.children.values():
                referring[self._find(child)].append(root)
        while learned:
            for root in referring[learned.pop()]:
                if not self._objects[root].has_values:
                    self._objects[root].has_values = True
                    learned.append(root)

    def _assign_ids(self) -> None:
        """Let the objects of the base have the ids that they have, and the others that have a path new ones."""
        size = len(self._graphs[0].nodes)
        for number in range(size):
            self._ids.setdefault(self._find(number), number)
        reached = self._reach()
        for number in range(size, len(self._nodes)):
            root = self._find(number)
            if root in reached and root not in self._ids:
                self._ids[root] = size + len(self._added)
                self._added.append(self._objects[root])

    def _reach(self) -> set[int]:
        """Return the objects that have a path, and the slot variables between them."""
        order = [self._find(0)]
        reached = set(order)
        for with_slots in (False, True):
            for root in order:
                one = self._objects[root]
                nodes = [child for child, _ in one.children.values()]
                if with_slots:
                    nodes += [slot for (variable, _), (slot, _) in one.slots.items() if variable in reached]
                for other in map(self._find, nodes):
                    if other not in reached:
                        reached.add(other)
                        order.append(other)
        return reached

    def _encode_lacking(self, one: _Object, own: Node) -> bytes:
        """Return the fields that a node which says `own` lacks to say all of its object."""
        fields: list[bytes] = []
        if len(one.children) > len(own.children):
            for name, (child, rest) in one.children.items():
                if name not in own.children:
                    fields.append(encode_child(self._ids[self._find(child)], rest))
        if len(one.attributes) > len(own.attributes):
            fields.extend([raw for name, (_, raw) in one.attributes.items() if name not in own.attributes])
        if one.slots:
            known = {(self._find(variable), name) for variable, name in own.slots}
            for (variable, name), (slot, rest) in one.slots.items():
                if (variable, name) not in known and variable in self._ids:
                    fields.append(encode_slot(self._ids[variable], rest, self._ids[self._find(slot)]))
        if one.saver is not None and own.saver is None:
            fields.append(one.saver[2])
        if one.has_values != own.has_values:
            fields.append(encode_has_values(value=one.has_values))
        fields.extend([raw for tag, raw in one.unknown.items() if tag not in own.unknown])
        return b"".join(fields)

    def _alike(self, root: int) -> Iterator[tuple[int, Node]]:
        """Return the nodes of one object, and their numbers."""
        return ((number, node) for number, node in enumerate(self._nodes) if self._find(number) == root)

    def _contradiction(self, what: str, values: Mapping[int, tuple[str, ...]], number: int) -> ValueError:
        """Return the error that node `number` says something else than others of the same object."""
        graph_of = {node: bisect_right(self._graphs, node, key=lambda graph: graph.first) - 1 for node in values}
        rivals = [other for other, value in values.items() if value != values[number]]
        rival = next((other for other in rivals if graph_of[other] != graph_of[number]), rivals[0])
        pair = sorted((number, rival))
        paths = " alias ".join(dict.fromkeys(repr(self._graphs[graph_of[node]].path(node)) for node in pair))
        one, other = (
            f"{' '.join(map(repr, values[node]))} in object graph {self._numbers[graph_of[node]]}" for node in pair
        )
        return ValueError(
            f"{what} of {paths} is {one} and {other}; "
            "let all workers build what they share in the same way and under the same names"
        )
