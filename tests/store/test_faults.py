"""What a store's statuses and headers mean."""

import datetime as dt
import pickle
from email.utils import format_datetime

import pytest

from ckpt_remote import errors
from ckpt_remote.store import faults

REQUEST = faults.Request("write", "s3://bucket/run/key", "those of a test")
NOW = dt.datetime(2026, 11, 22, 15, 0, tzinfo=dt.timezone.utc)
HOUR = 3600.0


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("999999999", HOUR),
        ("inf", HOUR),
        (format_datetime(NOW + dt.timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - dt.timedelta(days=1), usegmt=True), 0.0),
        (format_datetime(NOW + dt.timedelta(days=400), usegmt=True), HOUR),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Sun, 99 Nov 2026 15:00:00 GMT", None),
    ],
)
def test_a_wish_to_be_left_alone_is_seconds_or_a_date(wish: str, seconds: float | None) -> None:
    assert faults.retry_after({"retry-after": wish, "date": format_datetime(NOW, usegmt=True)}) == seconds


def test_who_does_not_wish_it_is_not_left_alone() -> None:
    assert faults.retry_after({}) is None


def test_a_date_without_the_answer_s_own_is_compared_with_our_clock() -> None:
    wish = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=600)
    for headers in ({}, {"date": "yesterday"}):
        seconds = faults.retry_after({"retry-after": format_datetime(wish, usegmt=True), **headers})
        assert seconds is not None
        assert 500 < seconds <= 600


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_transient_and_says_when(status: int) -> None:
    error = faults.from_status(REQUEST, status, "Busy", 7.0)
    assert isinstance(error, errors.StoreError)
    assert error.transient
    assert error.retry_after == 7.0
    assert f"{status} Busy" in str(error)


@pytest.mark.parametrize("status", [400, 401, 403, 405, 411, 501, 507])
def test_what_will_not_pass_is_final(status: int) -> None:
    error = faults.from_status(REQUEST, status, "No", 7.0)
    assert isinstance(error, errors.StoreError)
    assert not error.transient
    assert error.retry_after is None


def test_the_end_of_credentials_is_a_refusal_that_names_them() -> None:
    error = faults.expired(REQUEST, "HTTP 400 ExpiredToken")
    assert isinstance(error, faults.ExpiredError)
    assert not error.transient
    assert "those of a test" in str(error)
    assert error.path == "s3://bucket/run/key"


def test_who_used_no_credentials_is_not_told_that_they_ended() -> None:
    error = faults.expired(faults.Request("read", "s3://bucket/run/key", faults.ANONYMOUS), "HTTP 401")
    assert not isinstance(error, faults.ExpiredError)
    assert "No credentials were used: give some" in str(error)


def test_a_full_store_is_told_from_other_refusals() -> None:
    assert "Make room or raise the quota" in str(faults.from_status(REQUEST, 507, "XMinioStorageFull"))


def test_a_passing_failure_can_be_told_of_another_request_and_survives_a_process_boundary() -> None:
    busy = faults.from_status(REQUEST, 503, "SlowDown", 7.0)
    assert faults.is_passing(busy)
    other = faults.about(busy)(faults.Request("read", "s3://bucket/other"))
    assert "Cannot read s3://bucket/other: the store answered HTTP 503 SlowDown." in str(other)
    assert (other.transient, other.retry_after, other.path) == (True, 7.0, "s3://bucket/other")
    assert vars(pickle.loads(pickle.dumps(other))) == vars(other)  # noqa: S301 - our own bytes


def test_the_endpoint_is_named_where_it_is_known() -> None:
    request = faults.Request("read", "s3://bucket/key", endpoint="http://127.0.0.1:9000")
    assert "Check the endpoint http://127.0.0.1:9000 and the network" in str(faults.unreachable(request, "it broke"))
