"""A seal says who wrote an object, and only for the object that it was made for."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckpt_remote.origin import SEAL_SIZE, Attempt, new_attempt, new_term, read_seal, read_write_id


def digits(size):
    return st.text("0123456789abcdef", min_size=size, max_size=size)


attempts = st.builds(Attempt, digits(16), st.integers(0, 2**63 - 1), digits(24))
keys = st.text(min_size=1, max_size=40).filter(lambda key: key.isprintable())


@given(attempts, keys)
def test_a_seal_names_the_attempt_that_wrote_the_object(attempt, key):
    assert SEAL_SIZE == len(attempt.seal(key)) == 48
    assert attempt == read_seal(attempt.seal(key), key)
    assert attempt == read_write_id(attempt.write_id(key), key)


@given(attempts, keys, keys)
def test_a_seal_does_not_count_under_another_name(attempt, key, other):
    assume(key != other)

    assert read_seal(attempt.seal(key), other) is None
    assert read_write_id(attempt.write_id(key), other) is None


@pytest.mark.parametrize(
    "other",
    ["best-1.data-00000-of-00001", "ckpt-10.data-00000-of-00001", "deep/ckpt-1.data-00000-of-00001",
     "ckpt-1.data-00001-of-00001", "ckpt-1.data-00000-of-00002", "ckpt-1.index"],
)  # fmt: skip
def test_a_copy_under_another_name_does_not_pass_for_an_original(other):
    assert read_seal(new_attempt(new_term(), 3).seal("ckpt-1.data-00000-of-00001"), other) is None


@given(attempts, keys, st.integers(0, 8 * SEAL_SIZE - 1))
def test_every_flipped_bit_is_noticed(attempt, key, bit):
    seal = bytearray(attempt.seal(key))
    seal[bit // 8] ^= 1 << bit % 8

    assert read_seal(bytes(seal), key) is None
    assert read_write_id(seal.hex(), key) is None


@given(attempts, keys, st.integers(0, SEAL_SIZE - 1), st.binary(min_size=1, max_size=8))
def test_every_change_of_a_part_is_noticed(attempt, key, start, change):
    seal = attempt.seal(key)
    changed = seal[:start] + change + seal[start + len(change) :]
    assume(changed != seal)

    assert read_seal(changed, key) is None


@given(st.binary(max_size=3 * SEAL_SIZE), keys)
def test_what_is_no_seal_names_nobody(end, key):
    assert read_seal(end, key) is None
    assert read_write_id(end.hex(), key) is None


@pytest.mark.parametrize("write_id", ["", "old", "0" * 95, "zz" * 48, "é" * 96, " "])
def test_a_write_id_that_is_no_seal_names_nobody(write_id):
    assert read_write_id(write_id, "ckpt-1.index") is None


def test_the_end_of_data_is_no_seal():
    """Zeros are what a tensor mostly ends with."""
    assert read_seal(bytes(SEAL_SIZE), "ckpt-1.data-00000-of-00001") is None


def test_attempts_of_one_owner_differ():
    assert 1000 == len({new_attempt("0" * 16, 1) for _ in range(1000)})


def test_terms_differ():
    assert 1000 == len({new_term() for _ in range(1000)})
