"""Who writes what: every byte once, by one that has it, as level as can be, and the same for all who work it out."""

import math
import random
import time
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt_remote.bundle import OBJECT_GRAPH, STRING, Extent, TensorSlice, find_dtype
from ckpt_remote.errors import CorruptError
from ckpt_remote.layout import Manifest, assign, comparable, decode_manifest, encode_manifest, identity, manifest_of
from ckpt_remote.plan import Spec, Tensor

FLOAT, INT8, BFLOAT16, HALF, COMPLEX = 1, 6, 14, 19, 18
NUMERIC = (FLOAT, INT8, BFLOAT16, HALF, COMPLEX)
SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)


def spec(key, shape=(), dtype=FLOAT, part=None, **named):
    """A tensor's; of strings the size is said."""
    itemsize = find_dtype(dtype).itemsize or 1
    return Spec(**{
        "key": key, "dtype": dtype, "shape": shape, "part": part,
        "size": math.prod(shape if part is None else part.shape(shape)) * itemsize, **named,
    })  # fmt: skip


def tensors_of(specs):
    return [
        Tensor(
            key=it.key, dtype=it.dtype, shape=it.shape, part=it.part, mirrored=it.mirrored,
            data=np.zeros(it.size, np.uint8),
        )
        for it in specs
    ]  # fmt: skip


def manifest(*specs):
    return manifest_of(tensors_of(specs))


@st.composite
def whole_or_in_slices(draw, key, dtypes):
    """A tensor as it is, or a partitioned one as some slices of it, which need not be all."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    if dtype == STRING or not shape or shape[0] < 2 or not draw(st.booleans()):
        return [spec(key, shape, dtype, mirrored=draw(st.booleans()))]
    edges = sorted(draw(st.sets(st.integers(0, shape[0]), min_size=2, max_size=4)))
    rest = (Extent(),) * (len(shape) - 1)
    return [
        spec(key, shape, dtype, TensorSlice((Extent(start, stop - start), *rest))) for start, stop in pairwise(edges)
    ]


@st.composite
def crews(draw, dtypes=(*NUMERIC, STRING)):
    """What each of some workers has: much of it all have, some is each worker's own; strings are of any length."""
    workers = draw(st.integers(1, 4))
    crew = [[] for _ in range(workers)]
    for number in range(draw(st.integers(0, 7))):
        for it in draw(whole_or_in_slices(f"t{number}", dtypes)):
            everybody = st.just(frozenset(range(workers)))
            for rank in draw(everybody | st.frozensets(st.integers(0, workers - 1), min_size=1)):
                length = {"size": draw(st.integers(0, 99))} if it.dtype == STRING else {}
                crew[rank].append(replace(it, **length))
    return crew


def shares(crew, led=()):
    layout = assign([manifest(*specs) for specs in crew], led)
    return [layout.share(rank, specs) for rank, specs in enumerate(crew)]


def bytes_of(share):
    return sum(piece.size for shard in share for piece in shard)


def touched(pieces, it):
    """How often each element of that tensor is among them."""
    times = np.zeros(it.shape, int)
    for piece in pieces:
        if piece.key == it.key:
            times[... if piece.part is None else tuple(piece.part.bounds(it.shape))] += 1
    return times


@given(crew=crews(), led=st.sets(st.sampled_from([("t0", ""), ("t1", ""), ("t2", "")])))
def test_every_element_that_anybody_has_is_written_once_by_one_that_has_it(crew, led):
    written = [[piece for shard in share for piece in shard] for share in shares(crew, led)]
    everything = {it.key: it for specs in crew for it in specs}.values()

    for it in everything:
        has = np.array([touched(specs, it) for specs in crew])
        writes = np.array([touched(pieces, it) for pieces in written])
        assert (has.any(0) == writes.sum(0)).all()
        assert (writes <= has).all()
        if math.prod(it.shape) == 0:
            assert len({identity(own) for specs in crew for own in specs if own.key == it.key}) == sum(
                piece.key == it.key for pieces in written for piece in pieces
            )


@given(crew=crews())
def test_a_piece_has_the_bytes_of_its_elements(crew):
    for piece in (piece for share in shares(crew) for shard in share for piece in shard if piece.dtype != STRING):
        elements = math.prod(piece.shape if piece.part is None else piece.part.shape(piece.shape))
        assert elements * find_dtype(piece.dtype).itemsize == piece.size


@given(crew=crews())
def test_a_tensor_gives_the_same_pieces_as_its_specification(crew):
    layout = assign([manifest(*specs) for specs in crew])

    for rank, specs in enumerate(crew):
        pieces = layout.share(rank, tensors_of(specs))
        assert layout.share(rank, specs) == tuple(tuple(piece.spec for piece in shard) for shard in pieces)


@given(crew=crews())
def test_the_counts_are_those_of_the_shares(crew):
    manifests = [manifest(*specs) for specs in crew]

    assert tuple(map(len, shares(crew))) == assign(manifests).counts(manifests)


@given(crew=crews(), seed=st.integers())
def test_the_order_in_which_tensors_come_changes_nothing(crew, seed):
    mixed = [random.Random(seed).sample(specs, len(specs)) for specs in crew]

    assert [manifest(*specs) for specs in crew] == [manifest(*specs) for specs in mixed]
    assert shares(crew) == shares(mixed)


@given(specs=crews().map(lambda crew: crew[0]), workers=st.integers(1, 5), lengths=st.lists(st.integers(0, 9**9)))
def test_each_works_out_by_itself_what_all_would_agree_upon(specs, workers, lengths):
    """The strings of each are of another length, as an iterator's or a path's may be."""
    strings = [[spec("s", dtype=STRING, size=(lengths or [3])[rank % len(lengths or [3])])] for rank in range(workers)]
    manifests = [manifest_of([*tensors_of(specs), *map(Hollow, own)]) for own in strings]
    agreed = assign(manifests)

    assert 1 == len({each.digest for each in manifests})
    assert [agreed] * workers == [assign((own,) * workers) for own in manifests]
    assert agreed.counts(manifests)[1:] == agreed.counts((manifests[0],) * workers)[1:]


class Hollow:
    """A tensor of which only the specification is asked."""

    def __init__(self, spec):
        self.spec = spec


@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 10**4),
    workers=st.integers(1, 8),
)
@example(sizes=[10**6], workers=8)
@example(sizes=[1] * 11 + [10**4], workers=7)
def test_the_shares_of_what_all_have_are_level(sizes, workers):
    specs = [spec(f"t{n}", (size,)) for n, size in enumerate(sizes)]
    shared = [bytes_of(share) for share in shares([specs] * workers)]

    assert sum(sizes) * 4 == sum(shared)
    assert max(shared) <= 1.1 * min(shared)


@given(own=st.lists(st.integers(0, 10**5), min_size=2, max_size=6), spare=st.integers(10**4, 10**6))
def test_who_has_more_of_its_own_takes_less_of_what_all_have(own, spare):
    common = spec("common", (len(own) * max(own) - sum(own) + spare,), INT8)
    crew = [[common, spec(f"own {rank}", (size,), INT8)] for rank, size in enumerate(own)]
    shared = [bytes_of(share) for share in shares(crew)]

    assert max(shared) <= 1.1 * min(shared)


def test_who_has_more_than_its_part_anyway_writes_nothing_else():
    crew = [
        [spec("common", (900,), INT8), spec(f"own {rank}", (size,), INT8)] for rank, size in enumerate((9000, 0, 0))
    ]

    assert [9000, 450, 450] == [bytes_of(share) for share in shares(crew)]


def test_what_some_have_is_spread_among_them():
    specs = [spec(f"t{n}", (1000,)) for n in range(6)]

    assert [12000, 12000, 0] == [bytes_of(share) for share in shares([specs, specs, []])]


def test_what_some_have_is_spread_the_largest_first():
    specs = [spec(name, (size,), INT8) for name, size in (("a", 100), ("b", 100), ("c", 100), ("d", 300))]

    assert [300, 300, 0] == sorted((bytes_of(share) for share in shares([specs, specs, []])), reverse=True)


def test_tensors_that_cannot_be_cut_go_whole_to_one_after_the_other():
    specs = [spec(f"t{n}", (1,) * 8 + (1000,)) for n in range(6)]
    shared = shares([specs] * 3)

    assert [8000] * 3 == [bytes_of(share) for share in shared]
    assert all(piece.part is None for share in shared for shard in share for piece in shard)


def test_who_has_nothing_writes_nothing():
    crew = [[spec("t", (10,))], []]
    layout = assign([manifest(*specs) for specs in crew])

    assert ((), (1, 0)) == (layout.share(1, []), layout.counts([manifest(*specs) for specs in crew]))


@given(crew=crews(dtypes=NUMERIC), lengths=st.lists(st.integers(0, 10**12), min_size=4, max_size=4))
def test_the_lengths_of_strings_move_nobodys_share(crew, lengths):
    def assigned(lengths):
        strings = [Hollow(spec("s", dtype=STRING, size=length)) for length in lengths]
        return assign([manifest_of([*map(Hollow, specs), it]) for specs, it in zip(crew, strings, strict=False)])

    assert assigned([7] * 4) == assigned(lengths)


@given(crew=crews(dtypes=NUMERIC), led=st.sets(st.integers(0, 6)))
def test_what_is_led_is_written_whole_by_the_first_that_has_it(crew, led):
    layout = assign([manifest(*specs) for specs in crew], {(f"t{number}", "") for number in led})
    for it in {
        identity(it) for specs in crew for it in specs if identity(it) in {(f"t{number}", "") for number in led}
    }:
        holders = [rank for rank, specs in enumerate(crew) if it in {identity(had) for had in specs}]

        assert it not in layout.common
        assert [holders[0]] == [rank for rank, names in enumerate(layout.own) if it in names]


def test_strings_are_written_by_the_first_that_has_them():
    graph, words = spec(OBJECT_GRAPH, dtype=STRING, size=50), spec("words", dtype=STRING, size=5)
    crew = [[graph], [graph, words, spec("own", (1000,))], [graph, words]]
    layout = assign([manifest(*specs) for specs in crew])

    assert [set(), {("words", ""), ("own", "")}, set()] == [set(names) for names in layout.own]


@pytest.mark.parametrize("extra", [[], [spec("own")]], ids=["equal", "not equal"])
def test_the_first_writes_the_object_graph_unless_theirs_differ_and_are_to_be_merged(extra):
    graph = spec(OBJECT_GRAPH, dtype=STRING, size=50)
    written = [piece.key for share in shares([[graph], [graph, *extra]]) for shard in share for piece in shard]

    assert ([OBJECT_GRAPH] if not extra else ["own"]) == written


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (spec("w/key", (3, 2)), spec("w/key", (2, 3))),
        (spec("w/key", (3,)), spec("w/key", (3,), HALF)),
        (spec("w/key", (), STRING, size=4), spec("w/key", ())),
        (spec("w/key", ()), spec("w/key", (), STRING, size=4)),
    ],
    ids=["shape", "type", "string first", "string later"],
)
def test_two_tensors_under_one_name_are_an_error_that_names_it_and_both_workers(one, other):
    with pytest.raises(ValueError, match=r"^Workers 1 and 3 have .*'w/key'"):
        assign([manifest(), manifest(one), manifest(), manifest(other)])


def test_words_of_other_lengths_and_slices_of_one_tensor_are_no_conflict():
    halves = [spec("t", (4,), part=TensorSlice((Extent(start, 2),))) for start in (0, 2)]
    crew = [[half, spec("s", (n,), STRING, size=n)] for n, half in enumerate(halves)]

    assert [8, 8] == [bytes_of(share) for share in shares(crew)]


@given(crew=crews())
def test_a_manifest_survives_its_encoding(crew):
    for each in (manifest(*specs) for specs in crew):
        assert each == decode_manifest(encode_manifest(each), path="s3://b/r/x")


def test_a_manifest_takes_few_bytes_a_tensor():
    keys = [f"model/layer_with_weights-{n // 2}/{'bias' if n % 2 else 'kernel'}/.ATTRIBUTES/V" for n in range(1000)]

    assert len(encode_manifest(manifest(*(spec(key, (64, 64)) for key in keys)))) < 20 * len(keys)


@given(changed=st.sampled_from(["key", "dtype", "shape", "part", "mirrored"]))
def test_manifests_that_differ_have_digests_that_differ(changed):
    it = spec("t", (4, 2))
    others = {
        "key": spec("u", (4, 2)), "dtype": spec("t", (4, 2), STRING, size=32), "shape": spec("t", (2, 4)),
        "part": spec("t", (4, 2), part=TensorSlice((Extent(0, 2), Extent()))), "mirrored": replace(it, mirrored=True),
    }  # fmt: skip

    assert manifest(it).digest != manifest(others[changed]).digest


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[", b"null", b"[1]", b"[[]]", b'[["k"]]', b'[["k",1,[2],"x",8,0]]', b'[["k",1,2,"",8,0]]',
        b'[["k",1,[2],"5,9",8,0]]', b'[["k",1,[2],"",8,0,0]]', b"\xff", b'[["k",1,[2],"0,1:0,1",8,0]]',
        b"[" * 200_000,
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_corrupt_and_says_where(text):
    if text != b"{}":
        with pytest.raises(CorruptError, match="s3://b/r/x holds no manifest"):
            decode_manifest(zlib.compress(text), path="s3://b/r/x")
    with pytest.raises(CorruptError, match="s3://b/r/x holds no manifest"):
        decode_manifest(text, path="s3://b/r/x")


def test_damage_to_a_manifest_is_told():
    """Its compression ends with a checksum of what was compressed."""
    whole = encode_manifest(manifest(*(spec(f"t{n}", (n,)) for n in range(9))))
    expected, chance = decode_manifest(whole, path="x"), random.Random(1)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        for data in (damaged, whole[: chance.randrange(len(whole))]):
            try:
                assert expected == decode_manifest(bytes(data), path="x")  # a bit that means nothing, as in the header
            except CorruptError:
                continue


def test_what_is_compared_are_the_numbers_in_the_order_of_their_names():
    specs = [spec("b"), spec(OBJECT_GRAPH, dtype=STRING, size=3), spec("a", (2,), part=TensorSlice((Extent(1, 1),)))]

    assert ([("a", "1,1"), ("b", "")]) == [identity(it) for it in comparable(specs)]
    assert comparable(specs) == manifest(*specs).comparable


def seconds(work):
    """What it takes of the processor, at best."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.slow
def test_100_000_tensors_that_all_have_are_shared_out_within_seconds():
    common = manifest(*(spec(f"layer {n}/kernel", (64, 16)) for n in range(100_000)))
    layout = assign((common,) * 64)

    assert seconds(lambda: assign((common,))) < 3
    assert seconds(lambda: layout.counts((common,) * 64)) < 3
    assert seconds(lambda: layout.share(63, common.specs)) < 3


@pytest.mark.slow
def test_more_workers_that_have_the_same_take_no_more_time():
    common = manifest(*(spec(f"layer {n}/kernel", (64, 16)) for n in range(20_000)))

    assert seconds(lambda: assign((common,) * 64)) < 2 * seconds(lambda: assign((common,)))


@pytest.mark.slow
def test_where_each_has_some_of_its_own_time_grows_with_the_workers_and_no_faster():
    common = manifest(*(spec(f"layer {n}/kernel", (64, 16)) for n in range(20_000)))
    crew = [Manifest((*common.specs, spec(f"own {rank}")), f"{rank}") for rank in range(64)]

    assert seconds(lambda: assign(crew)) < 2 * 8 * seconds(lambda: assign(crew[:8]))
