"""Only what is safe is repeated, as often and as patiently as the policy says."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from ckpt_remote import errors, progress
from ckpt_remote.buffers import Buffer
from ckpt_remote.store import Object, ObjectInfo, Policy, PutMode, Retry, Retrying, Store, Version, faults

BUSY = errors.StoreError("busy", transient=True)
REFUSED = errors.StoreError("refused", transient=False)


class Scripted(Store):
    """Fails as the script says, then succeeds; counts."""

    url = "s3://b/run"
    engine = "script"

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0
        self.deleted: list[list[str]] = []

    def _next(self) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)

    def read(self, key: str) -> Object:
        self._next()
        return Object(key.encode(), Version("1"))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        self._next()
        return b"x" * length

    def size(self, key: str) -> int:
        self._next()
        return 1

    def put(self, key: str, buffers: Sequence[Buffer], mode: PutMode) -> Version:
        self._next()
        return Version("2")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield ObjectInfo("a", 1)
        self._next()
        yield ObjectInfo("b", 1)

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        self.calls += 1
        self.deleted.append([*keys])
        failure = self.failures.pop(0) if self.failures else None
        return {keys[-1]: failure} if failure else {}

    def remove(self, key: str, version: Version) -> None:
        self._next()

    def require_container(self) -> None:
        self._next()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def retrying(self, inner: Store, policy: Policy | None = None, *, luck: float = 1.0) -> Retrying:
        return Retrying(
            inner,
            policy,
            clock=lambda: self.now,
            sleep=self.sleep,
            uniform=lambda low, high: low + luck * (high - low),
        )


SAFE: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("k"),
    "read_range": lambda store: store.read_range("k", 0, 3),
    "size": lambda store: store.size("k"),
    "overwrite": lambda store: store.put("k", [b""], "overwrite"),
    "list": lambda store: [*store.list()],
    "require_container": lambda store: store.require_container(),
}


@pytest.mark.parametrize("use", SAFE.values(), ids=SAFE.keys())
def test_safe_requests_are_repeated_until_they_pass(use: Callable[[Store], object]) -> None:
    inner, time = Scripted(BUSY, BUSY, BUSY), Time()
    assert use(time.retrying(inner)) == use(Scripted())
    assert inner.calls == 4
    assert [0.2, 0.4, 0.8] == time.pauses


@pytest.mark.parametrize("use", SAFE.values(), ids=SAFE.keys())
def test_six_attempts_are_made_and_the_last_failure_is_told(use: Callable[[Store], object]) -> None:
    inner, time = Scripted(*[BUSY] * 20), Time()
    with pytest.raises(errors.StoreError, match="busy"):
        use(time.retrying(inner))
    assert inner.calls == 6
    assert len(time.pauses) == 5


@pytest.mark.parametrize(
    "error", [REFUSED, errors.NotFoundError("gone"), errors.ConflictError("won"), ValueError("no")]
)
@pytest.mark.parametrize("use", SAFE.values(), ids=SAFE.keys())
def test_other_failures_are_told_at_once(use: Callable[[Store], object], error: Exception) -> None:
    inner, time = Scripted(error), Time()
    with pytest.raises(type(error)):
        use(time.retrying(inner))
    assert inner.calls == 1
    assert [] == time.pauses


@pytest.mark.parametrize("mode", ["create", Version("1")])
def test_conditional_puts_are_sent_exactly_once(mode: PutMode) -> None:
    inner, time = Scripted(BUSY), Time()
    with pytest.raises(errors.StoreError, match="busy"):
        time.retrying(inner).put("k", [b""], mode)
    assert inner.calls == 1
    assert [] == time.pauses


def test_a_conditional_removal_is_sent_exactly_once() -> None:
    inner, time = Scripted(BUSY), Time()
    with pytest.raises(errors.StoreError, match="busy"):
        time.retrying(inner).remove("k", Version("1"))
    assert inner.calls == 1
    assert [] == time.pauses


def test_whoever_repeats_by_itself_gets_the_store_that_does_not() -> None:
    inner = Scripted(BUSY)
    assert inner is Time().retrying(Time().retrying(inner)).single


def test_pauses_are_drawn_below_a_bound_that_doubles_up_to_a_limit() -> None:
    policy = Policy(attempts=6, first_delay=1.0, longest_delay=3.0)
    for luck, pauses in ((0.0, [0, 0, 0, 0, 0]), (0.5, [0.5, 1, 1.5, 1.5, 1.5]), (1.0, [1, 2, 3, 3, 3])):
        inner, time = Scripted(*[BUSY] * 20), Time()
        with pytest.raises(errors.StoreError):
            time.retrying(inner, policy, luck=luck).read("k")
        assert pauses == time.pauses


def test_nothing_is_started_after_the_deadline() -> None:
    inner, time = Scripted(*[BUSY] * 20), Time()
    with pytest.raises(errors.StoreError):
        time.retrying(inner, Policy(attempts=20, first_delay=4.0, longest_delay=4.0, deadline=9.0)).read("k")
    assert [4.0, 4.0] == time.pauses


def asks_for(seconds: float) -> errors.StoreError:
    return errors.StoreError("busy, come back later", transient=True, retry_after=seconds)


def test_a_store_that_says_when_to_come_back_is_left_alone_until_then() -> None:
    inner, time = Scripted(asks_for(7.0), asks_for(0.1)), Time()
    time.retrying(inner).read("k")
    assert [7.0, 0.4] == time.pauses


def test_a_store_that_asks_for_more_than_the_deadline_leaves_is_not_waited_for() -> None:
    inner, time = Scripted(asks_for(20.0), asks_for(20.0)), Time()
    with pytest.raises(errors.StoreError, match="come back later"):
        time.retrying(inner).read("k")
    assert [20.0] == time.pauses, "the deadline of 30 s has 10 s left for the second"


def test_the_requests_of_one_operation_share_their_budget_and_their_deadline() -> None:
    inner, time = Scripted(*[BUSY] * 20), Time()
    trial = Retry(Policy(), clock=lambda: time.now, sleep=time.sleep).start()
    inner.failures[4:4] = [errors.NotFoundError("gone")]
    with pytest.raises(errors.NotFoundError):
        trial.call(lambda: inner.read("a"))
    with pytest.raises(errors.StoreError):
        trial.call(lambda: inner.read("b"))
    assert inner.calls == 7, "six that failed for the moment, and one that was answered"


def questioned(questions: int) -> errors.StoreError:
    error = faults.unreachable(faults.Request("read", "s3://b/run/k"), "busy")
    error.questions = questions
    return error


@pytest.mark.parametrize(("attempts", "questions", "sent"), [(6, 1, 5), (6, 2, 4), (3, 1, 2), (2, 1, 2), (1, 1, 1)])
def test_what_was_sent_to_learn_the_cause_counts_but_leaves_a_second_attempt(
    attempts: int, questions: int, sent: int
) -> None:
    inner = Scripted(questioned(questions), *[questioned(0)] * 20)
    with pytest.raises(errors.StoreError, match="busy"):
        Time().retrying(inner, Policy(attempts=attempts)).read("k")
    assert inner.calls == sent


def test_each_repetition_is_an_event() -> None:
    events: list[progress.Event] = []
    with progress.listen(events.append):
        Time().retrying(Scripted(BUSY, asks_for(3.0))).read("k")
    assert events == [
        progress.Repeated(error="busy", failures=1, pause=0.2),
        progress.Repeated(error="busy, come back later", failures=2, pause=3.0),
    ]


def test_a_listing_that_breaks_off_is_told_once() -> None:
    assert [ObjectInfo("a", 1), ObjectInfo("b", 1)] == [*Time().retrying(Scripted(BUSY, BUSY)).list()]


def test_a_deletion_is_repeated_for_the_keys_that_may_pass() -> None:
    inner = Scripted(BUSY, BUSY)
    assert {} == Time().retrying(inner).delete(["a", "b", "c"])
    assert [["a", "b", "c"], ["c"], ["c"]] == inner.deleted


def test_a_deletion_that_was_refused_is_reported_and_not_repeated() -> None:
    inner = Scripted(REFUSED)
    assert {"b": REFUSED} == Time().retrying(inner).delete(["a", "b"])
    assert inner.calls == 1


def test_a_deletion_that_never_passes_is_reported() -> None:
    inner = Scripted(*[BUSY] * 20)
    assert {"b": BUSY} == Time().retrying(inner).delete(["a", "b"])
    assert inner.calls == 6


def test_a_deletion_that_is_refused_later_is_reported_as_refused() -> None:
    assert {"b": REFUSED} == Time().retrying(Scripted(BUSY, REFUSED)).delete(["a", "b"])
