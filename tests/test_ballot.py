"""What workers tell each other is what was said, or it is refused: damage, a copy, a stranger's."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fuzz import mutated

from ckpt_remote import errors
from ckpt_remote.ballot import Failure, Part, Plan, decode_join, decode_layout, decode_part, decode_plan, encode_layout
from ckpt_remote.bundle import crc32c
from ckpt_remote.errors import CheckpointError, CorruptError, IncompleteError, StoreError
from ckpt_remote.layout import Layout
from ckpt_remote.origin import SEAL_SIZE, Attempt, new_attempt, new_term
from ckpt_remote.probe import CONTROL, PLAN
from ckpt_remote.store.faults import ExpiredError

WHERE = "s3://bucket/run/somewhere"
PART = f"{CONTROL}0123/part-1"
OURS = Attempt("00" * 8, 7, "11" * 12)
THEIRS = Attempt("00" * 8, 7, "22" * 12)


def checked(body):
    """A text below its checksum, as both are written."""
    return f"{crc32c(body):08x}".encode() + body


attempts = st.builds(
    Attempt,
    term=st.binary(min_size=8, max_size=8).map(bytes.hex),
    serial=st.integers(0, 2**64 - 1),
    number=st.binary(min_size=12, max_size=12).map(bytes.hex),
)
texts = st.text(max_size=20)
identities = st.frozensets(st.tuples(texts, st.sampled_from(["", "0,5:-", "3,1"])), max_size=3)
layouts = st.builds(
    Layout,
    own=st.lists(identities, max_size=3).map(tuple),
    common=identities,
    taken=st.lists(st.integers(0, 2**50), max_size=3).map(tuple),
    limit=st.integers(1, 2**40),
)
failures = st.builds(Failure, texts, texts, st.booleans())
plans = st.builds(
    Plan,
    status=st.sampled_from(["open", "asking", "failed", "over"]),
    session=texts,
    job=texts,
    ordinal=st.integers(0, 2**40),
    size=st.integers(2, 999),
    attempt=attempts,
    path=texts,
    since=texts,
    counter=st.none() | st.integers(0, 2**62),
    is_first=st.booleans(),
    exact=st.booleans(),
    state=texts,
    of=st.integers(0, 99_999),
    first=st.lists(st.integers(0, 99_999)).map(tuple),
    manifests=st.lists(texts).map(tuple),
    is_laid_out=st.booleans(),
    failure=st.none() | failures,
    last=st.none() | failures,
)
parts = st.builds(
    Part,
    failure=st.none() | failures,
    is_occupied=st.booleans(),
    index=st.binary(),
    checksums=st.binary(),
    graph=st.binary(),
    manifest=st.binary(),
)

PLAN_OF_OURS = Plan(
    status="open", session="5e55", job="j", ordinal=3, size=4, attempt=OURS, path="ckpt-3", since="abc", exact=True,
    state="1d", of=9, first=(0, 2, 4, 6, 8), manifests=("a", "a", "a", "b"),
    is_laid_out=True,
    failure=Failure("ValueError", "because", keep=True), last=Failure("StoreError", "no"),
)  # fmt: skip
LAYOUT = Layout(own=(frozenset({("k", "0,5:-")}), frozenset()), common=frozenset({("c", "")}), taken=(3, 4), limit=9)
PART_OF_OURS = Part(
    failure=Failure("StoreError", "no"), index=b"i" * 90, checksums=b"\n" * 8, graph=b"g", manifest=b"m"
)


@given(plan=plans)
def test_a_plan_survives_its_encoding(plan):
    assert plan == decode_plan(plan.encode(), path=WHERE)


@given(layout=layouts, plan=plans)
def test_a_layout_survives_its_encoding(layout, plan):
    data = encode_layout(layout) + plan.attempt.seal(plan.layout_key)

    assert layout == decode_layout(data, plan, path=WHERE)


def test_a_layout_of_another_attempt_is_none():
    data = encode_layout(LAYOUT) + THEIRS.seal(PLAN_OF_OURS.layout_key)

    with pytest.raises(CorruptError, match="another seal"):
        decode_layout(data, PLAN_OF_OURS, path=WHERE)


@given(part=parts, attempt=attempts)
def test_a_vote_survives_its_encoding_and_says_whose_it_is(part, attempt):
    assert (part, attempt) == decode_part(part.encode() + attempt.seal(PART), PART, path=WHERE)


@given(attempt=attempts)
def test_a_join_says_whose_it_is(attempt):
    assert attempt == decode_join(attempt.seal(PART), PART, path=WHERE)


def test_the_workers_speak_below_the_attempt_and_the_leader_reads_exactly_those_names():
    number = OURS.number
    expected = [f"_ckpt_remote/{number}/{what}-{rank}" for rank in (1, 2, 3) for what in ("join", "part")]

    assert tuple(expected) == PLAN_OF_OURS.keys()
    assert expected[0] == PLAN_OF_OURS.key("join", 1)


ENCODED = {
    "plan": (PLAN_OF_OURS.encode(), lambda data: decode_plan(data, path=WHERE)),
    "layout": (
        encode_layout(LAYOUT) + OURS.seal(PLAN_OF_OURS.layout_key),
        lambda data: decode_layout(data, PLAN_OF_OURS, path=WHERE),
    ),
    "part": (PART_OF_OURS.encode() + OURS.seal(PART), lambda data: decode_part(data, PART, path=WHERE)),
    "join": (OURS.seal(PART), lambda data: decode_join(data, PART, path=WHERE)),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_what_is_cut_short_is_corrupt(kind):
    whole, decode = ENCODED[kind]
    for length in range(len(whole)):
        with pytest.raises(CorruptError, match=WHERE):
            decode(whole[:length])
        with pytest.raises(CorruptError, match=WHERE):
            decode(whole[len(whole) - length :])


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("data", [b"", b"\x00" * 500, b"somebody's own notes\n" * 9, b"{}", b"null" + b" " * 80])
def test_what_others_put_there_is_corrupt(kind, data):
    with pytest.raises(CorruptError, match=WHERE):
        ENCODED[kind][1](data)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"{}", b"[]", b"null", b"3", b'"x"', b'{"attempt": 3}', b'{"attempt": null}', b"\xff\xfe",
        b'{"failure": null, "occupied": false}\n', b'{"failure": [1], "occupied": 0, "sizes": [0, 0, 0, 0]}\n',
        b'{"failure": null, "occupied": 0, "sizes": [1, 0, 0, 0]}\n', b'{"failure": 0, "occupied": 0, "sizes": 4}\n',
        b'{"failure": null, "occupied": 0, "sizes": [0, 0, 0]}\n', b'{"failure": 0, "occupied": 0, "sizes": ["x"]}\n',
        b'{"failure": null, "occupied": 0, "sizes": [-1, 1, 0, 0]}\n',
        b"[" * 200_000,
    ],
)  # fmt: skip
def test_a_seal_alone_makes_nothing_of_it(body):
    with pytest.raises(CorruptError, match=WHERE):
        decode_plan(checked(body) + OURS.seal(PLAN), path=WHERE)
    with pytest.raises(CorruptError, match=WHERE):
        decode_part(checked(body) + OURS.seal(PART), PART, path=WHERE)


def damaged(whole, chance):
    """Something else than it was, in most cases below a seal that is right."""
    body, seal = (whole[:-SEAL_SIZE], whole[-SEAL_SIZE:]) if chance.random() < 0.8 else (whole, b"")
    if chance.random() < 0.5 and body:
        changed = bytearray(body)
        changed[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        return bytes(changed) + seal
    return mutated(body, [data for data, _ in ENCODED.values()], chance) + seal


def fuzz(kind, count):
    """How often damage was told, was no damage, passed for something else, or raised what it must not."""
    whole, decode = ENCODED[kind]
    chance, outcomes, expected = random.Random(7), Counter(), decode(whole)
    for _ in range(count):
        data = damaged(whole, chance)
        try:
            outcomes["equal" if decode(data) == expected else "another"] += 1
        except CorruptError:
            outcomes["corrupt"] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            outcomes[f"{error!r} for {data[:200]!r}"] += 1
    return outcomes


@pytest.mark.parametrize("kind", ENCODED)
def test_damage_never_raises_anything_but_corrupt_error(kind):
    outcomes = fuzz(kind, 2000)

    assert not outcomes.keys() - {"equal", "another", "corrupt"}
    assert outcomes["corrupt"] > 100


@pytest.mark.parametrize("kind", ENCODED)
def test_damage_never_passes_for_something_else(kind):
    assert not fuzz(kind, 2000)["another"]


@given(other=attempts.filter(lambda attempt: attempt != OURS))
def test_a_plan_below_somebody_elses_seal_is_refused(other):
    body = PLAN_OF_OURS.encode()[:-SEAL_SIZE]
    with pytest.raises(CorruptError, match="another seal"):
        decode_plan(body + other.seal(PLAN), path=WHERE)


@pytest.mark.parametrize("key", [f"{CONTROL}0123/part-2", f"{CONTROL}0124/part-1", f"{CONTROL}0123/join-1", PLAN])
def test_a_copy_under_another_name_is_refused(key):
    with pytest.raises(CorruptError, match="has no seal"):
        decode_part(PART_OF_OURS.encode() + OURS.seal(PART), key, path=WHERE)
    with pytest.raises(CorruptError, match="has no seal"):
        decode_join(OURS.seal(PART), key, path=WHERE)
    with pytest.raises(CorruptError, match="has no seal"):
        decode_plan(PLAN_OF_OURS.encode()[:-SEAL_SIZE] + OURS.seal(PART), path=WHERE)


def test_a_plan_of_a_later_version_of_the_library_is_corrupt_and_not_half_understood():
    fields = {**json.loads(PLAN_OF_OURS.encode()[8:-SEAL_SIZE]), "compression": "zstd"}
    with pytest.raises(CorruptError, match="no plan"):
        decode_plan(checked(json.dumps(fields).encode()) + OURS.seal(PLAN), path=WHERE)


def test_the_seals_of_two_attempts_at_one_save_differ():
    term = new_term()

    assert new_attempt(term, 1).seal(PLAN) != new_attempt(term, 1).seal(PLAN)


KINDS = [ValueError, TypeError, *(getattr(errors, name) for name in errors.__all__ if name != "CheckpointError")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_all_workers_raise_the_error_of_the_one_that_failed(kind):
    told = Failure.of(kind("the cause, and the next step"), "Worker 2: ")
    raised = replace(told, keep=False).error(WHERE)

    assert (kind, "Worker 2: the cause, and the next step") == (type(raised), str(raised))
    assert not isinstance(raised, CheckpointError) or raised.path == WHERE


class DetailedError(StoreError):
    """As an engine's own, below one of the library's."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DetailedError("no answer"), StoreError),
        (ExpiredError("no answer", path=WHERE), StoreError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), ValueError),
    ],
    ids=["of ours", "an engine's", "of Python's"],
)
def test_what_an_error_is_derived_from_is_what_the_others_raise(error, kind):
    assert kind is type(Failure.of(error).error(WHERE))


@pytest.mark.parametrize(
    "error", [RuntimeError("out of luck"), KeyError("x"), MemoryError(), OSError(5, "no")], ids=repr
)
def test_what_means_nothing_to_others_is_a_save_that_is_not_complete(error):
    raised = Failure.of(error, "Worker 1: ").error(WHERE)

    assert IncompleteError is type(raised)
    assert str(raised).startswith(f"Worker 1: {type(error).__name__}")


@pytest.mark.parametrize("kind", ["", "NoSuchError", "KeyboardInterrupt", "SystemExit", "CheckpointError", "__doc__"])
def test_a_kind_that_nobody_knows_is_a_save_that_is_not_complete(kind):
    raised = Failure(kind, "because").error(WHERE)

    assert (IncompleteError, "because", WHERE) == (type(raised), str(raised), raised.path)


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyError], ids=lambda kind: kind.__name__)
def test_the_text_of_somebody_elses_error_is_not_told_for_it_may_hold_a_credential(error):
    """What the library says itself names no credential; what a client says may be a signed URL."""
    secret = "X-Amz-Signature=5ec7e7"

    assert secret not in Failure.of(error(f"GET https://bucket/key?{secret} failed"), "Worker 1: ").message


@pytest.mark.parametrize("keep", [False, True])
def test_whether_an_index_may_name_what_was_written_is_told(keep):
    told = Failure.of(errors.UnknownOutcomeError("who knows"), keep=keep)
    plan = replace(PLAN_OF_OURS, failure=told)

    assert told == decode_plan(plan.encode(), path=WHERE).failure
    assert keep is told.keep
    assert Failure("ValueError", "no index names anything") == Failure.of(ValueError("no index names anything"))
    assert not Failure("ValueError", "no index names anything").keep
