"""What ends an attempt says why, to everybody."""

import pytest
from support.meeting import URL, plan

from ckpt_remote.ballot import Failure
from ckpt_remote.errors import ConflictError, IncompleteError
from ckpt_remote.verdicts import AbandonedError, incomplete, taken_over, twice, vanished


def test_what_ends_an_attempt_says_why():
    assert "because" == str(AbandonedError(Failure("ValueError", "because")))
    assert isinstance(AbandonedError(Failure("Nobody", "x")).failure.error(URL), IncompleteError)


@pytest.mark.parametrize(
    ("verdict", "error", "keep"),
    [
        (taken_over(URL), ConflictError, True),
        (incomplete(f"Nobody has come to {URL}."), IncompleteError, True),
        (twice(2, URL), ConflictError, False),
        (vanished(2, plan(), URL, absent=[]), IncompleteError, False),
        (vanished(2, plan(), URL, absent=[1, 2]), IncompleteError, False),
    ],
)
def test_the_directory_is_named_and_what_an_index_may_name_is_kept(verdict, error, keep):
    raised = verdict.failure.error(URL)

    assert error is type(raised)
    assert URL in str(raised)
    assert keep == verdict.failure.keep


def test_a_worker_that_vanished_is_named_with_what_it_was_last_seen_at():
    assert "worker 2 of 3 has not come" in str(vanished(2, plan(), URL, absent=[2]))
    assert "worker 2 of 3 has begun its share" in str(vanished(2, plan(), URL, absent=[1]))
