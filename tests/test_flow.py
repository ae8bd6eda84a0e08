"""The driver repeats what is safe, sends the rest once, and never more than the budget of the flow allows."""

import pytest
from support.places import Place, read_all

from ckpt_remote.errors import ConflictError, CorruptError, NotFoundError, StoreError
from ckpt_remote.flow import Delete, Ends, Get, GetAll, List, Pause, Put, Remove, Wait, Withdraw, run
from ckpt_remote.progress import Repeated, listen
from ckpt_remote.store import Object, ObjectInfo, Policy, Retry, Retrying, Version

BUSY = StoreError("503 busy", transient=True)
REFUSED = StoreError("403 refused")
SOME = ObjectInfo("k", 100)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now, self.pauses = 100.0, []

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def retry(self, **policy):
        return Retry(Policy(**policy), clock=lambda: self.now, sleep=self.sleep, uniform=lambda low, high: high)


class Failing:
    """A store that answers its first requests with errors, and counts all of them."""

    url = engine = "test"

    def __init__(self, *errors, store=None):
        self._store, self._errors, self.asked = store or Place.in_memory().store(), list(errors), []

    @property
    def single(self):
        return self

    def _ask(self, verb, *arguments):
        self.asked.append((verb, *arguments))
        if self._errors:
            raise self._errors.pop(0)
        return getattr(self._store, verb)(*arguments)

    def read(self, key):
        return self._ask("read", key)

    def read_range(self, key, start, length):
        return self._ask("read_range", key, start, length)

    def put(self, key, buffers, mode):
        return self._ask("put", key, buffers, mode)

    def list(self, prefix):
        yield from self._ask("list", prefix)

    def remove(self, key, version):
        return self._ask("remove", key, version)

    def delete(self, keys):
        self.asked.append(("delete", tuple(keys)))
        failure = self._errors.pop(0) if self._errors else None
        passed = keys if failure is None else keys[:-1]
        return self._store.delete(passed) | ({} if failure is None else {keys[-1]: failure})


def asking(*requests):
    """A flow that sends these requests, and returns the answers."""
    answers = []
    for request in requests:
        answers += [(yield request)]
    return answers


def stored(**objects):
    store = Place.in_memory().store()
    for key, data in objects.items():
        store.put(key, [data], "create")
    return store


def test_requests_are_answered_by_the_store_in_order():
    store = stored(a=b"one", b=b"three")
    version = store.read("a").version

    assert [
        Object(b"one", version),
        None,
        (ObjectInfo("b", 5),),
        (b"ne", None, None, b"ee"),
        {},
        True,
        True,
    ] == run(
        asking(
            Get("a"),
            Get("missing"),
            List("b"),
            Ends((ObjectInfo("a", 3), ObjectInfo("missing", 9), ObjectInfo("b", 1), ObjectInfo("b", 5)), 2),
            Delete(("b", "missing")),
            Remove("a", version),
            Remove("a", version),
        ),
        store,
        Retry(),
    )
    assert [] == list(store.list())


def test_a_put_is_answered_with_the_version_that_it_made():
    store = stored()
    (version,) = run(asking(Put("a", (b"on", b"e"), "create")), store, Retry())

    assert Object(b"one", version) == store.read("a")


def test_the_end_of_an_object_that_is_shorter_than_its_listing_said_is_unknown():
    assert [(None,)] == run(asking(Ends((ObjectInfo("a", 50),), 8)), stored(a=b"x" * 20), Retry())


@pytest.mark.parametrize("error", [ConflictError("won"), REFUSED, BUSY], ids=str)
@pytest.mark.parametrize("request_", [Put("k", (b"",), "create"), Remove("k", Version("1"))], ids=repr)
def test_what_fails_is_raised_in_the_flow_which_may_go_on(request_, error):
    def flow():
        try:
            yield request_
        except type(error) as caught:
            return caught, (yield Get("a")).data

    assert (error, b"one") == run(flow(), Failing(error, store=stored(a=b"one")), Retry())


@pytest.mark.parametrize("error", [ConflictError("won"), REFUSED, CorruptError("damaged"), ValueError("bug")], ids=str)
def test_what_the_flow_does_not_catch_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        run(asking(Put("k", (b"",), "create")), Failing(error), Retry())

    assert error is caught.value


def test_an_empty_flow_asks_nothing():
    store = Failing()

    assert [] == run(asking(), store, Retry())
    assert [] == store.asked


SAFE = [Get("k"), List("k"), Ends((SOME,), 48)]
ONCE = [Put("k", (b"",), "create"), Put("k", (b"",), Version("1")), Remove("k", Version("1"))]


@pytest.mark.parametrize("request_", SAFE, ids=repr)
def test_a_permanent_503_gets_six_requests_in_all(request_):
    store, time = Failing(*[BUSY] * 50), Time()
    with pytest.raises(StoreError) as caught:
        run(asking(request_), store, time.retry())

    assert BUSY is caught.value
    assert 6 == len(store.asked)
    assert [0.2, 0.4, 0.8, 1.6, 3.2] == time.pauses


@pytest.mark.parametrize("failures", range(6))
@pytest.mark.parametrize("request_", SAFE, ids=repr)
def test_a_503_that_passes_costs_only_time(request_, failures):
    store = Failing(*[BUSY] * failures, store=stored(k=b"x" * 100))
    run(asking(request_), store, Time().retry())

    assert failures + 1 == len(store.asked)


@pytest.mark.parametrize("error", [BUSY, REFUSED, ConflictError("won")], ids=str)
@pytest.mark.parametrize("request_", ONCE, ids=repr)
def test_a_conditional_request_is_sent_once(request_, error):
    store, time = Failing(error), Time()
    with pytest.raises(type(error)):
        run(asking(request_), store, time.retry())

    assert 1 == len(store.asked)
    assert [] == time.pauses


@pytest.mark.parametrize("request_", SAFE, ids=repr)
def test_a_refusal_for_good_is_not_repeated(request_):
    store = Failing(REFUSED)
    with pytest.raises(StoreError):
        run(asking(request_), store, Retry())

    assert 1 == len(store.asked)


def settling(key="k"):
    """A flow as they all are: it reads back what became of a put, and waits before it sends it again."""
    while True:
        try:
            return (yield Put(key, (b"mine",), "create"))
        except (StoreError, ConflictError) as error:
            failure = error
        if (found := (yield Get(key))) is not None:
            return found.version
        yield Pause(failure)


def test_the_requests_of_a_flow_share_one_budget():
    """Put, then five times Get: the sixth failure in all ends it, whichever request it hits."""
    store = Failing(*[BUSY] * 50)
    with pytest.raises(StoreError):
        run(settling(), store, Time().retry())

    assert 6 == len(store.asked)


def test_puts_that_a_pause_is_between_share_it_too():
    store, time = ReadsPass(*[BUSY] * 50), Time()
    with pytest.raises(StoreError):
        run(settling(), store, time.retry())

    assert 6 == len(store.asked)
    assert [0.2, 0.4, 0.8, 1.6, 3.2] == time.pauses


def test_a_store_that_answers_only_with_conflicts_that_are_none_is_given_up_as_well():
    class Absent(Failing):
        def read(self, key):
            raise NotFoundError("nothing there")

    store = Absent(*[ConflictError("exists")] * 50)
    with pytest.raises(ConflictError):
        run(settling(), store, Time().retry())

    assert 6 == len(store.asked)


def test_each_flow_has_a_budget_of_its_own():
    retry = Time().retry()
    for _ in range(3):
        run(asking(Get("k")), Failing(*[BUSY] * 5), retry)


def test_a_policy_of_one_attempt_repeats_nothing():
    """As for a filesystem whose own client repeats requests."""
    reading, writing = Failing(BUSY), Failing(BUSY, store=stored())
    for flow, store in ((asking(Get("k")), reading), (settling(), writing)):
        with pytest.raises(StoreError):
            run(flow, store, Retry(Policy(attempts=1)))

    assert [("read", "k")] == reading.asked
    assert [("put", "k", (b"mine",), "create"), ("read", "k")] == writing.asked


def test_a_deletion_is_repeated_for_what_may_pass_and_reported_by_key():
    store = Failing(BUSY, BUSY, store=stored(a=b"", b=b"", c=b""))

    assert [{}] == run(asking(Delete(("a", "b", "c"))), store, Time().retry())
    assert [("delete", ("a", "b", "c")), ("delete", ("c",)), ("delete", ("c",))] == store.asked
    assert [] == list(store._store.list())


def test_a_deletion_that_keeps_failing_gets_six_requests_and_is_reported():
    store = Failing(*[BUSY] * 50)

    assert [{"a": BUSY}] == run(asking(Delete(("a",))), store, Time().retry())
    assert 6 == len(store.asked)


def test_a_deletion_that_is_refused_is_reported_and_not_repeated():
    store = Failing(REFUSED)

    assert [{"a": REFUSED}] == run(asking(Delete(("a",))), store, Retry())
    assert 1 == len(store.asked)


def test_objects_are_read_many_at_a_time_in_the_order_asked():
    store = stored(a=b"one", b=b"three")

    assert [(b"three", None, b"one")] == [
        tuple(found and found.data for found in answer)
        for answer in run(asking(GetAll(("b", "missing", "a"))), store, Retry())
    ]


def test_waiting_for_somebody_else_tells_the_time_and_renews_the_budget():
    time = Time()
    store = Failing(*[BUSY] * 4, store=stored(a=b"one"))
    flow = asking(Get("a"), Wait(7.0), Get("a"), Wait(0.0))
    store._errors[4:] = []
    before = time.now
    answers = run(flow, store, time.retry())

    assert answers[1] >= before + 7.0
    assert answers[3] >= answers[1]


def test_a_failure_before_a_wait_does_not_count_after_it():
    """Who polls for minutes meets more failures than one operation may."""
    time, inner = Time(), stored(a=b"one")

    class Flaky(Failing):
        def read(self, key):
            self._errors += [BUSY] if len(self.asked) % 2 == 0 else []
            return super().read(key)

    store = Flaky(store=inner)
    answers = run(asking(*[Get("a"), Wait(1.0)] * 10), store, time.retry())

    assert 20 == len(store.asked)
    assert [b"one"] * 10 == [answer.data for answer in answers[::2]]


def test_a_withdrawal_asks_for_each_object_once_leaves_anothers_and_reports_the_rest():
    store = Failing(ConflictError("another version"), BUSY)
    objects = (("a", Version("1")), ("b", Version("2")), ("c", Version("3")))

    assert {BUSY} == set(run(asking(Withdraw(objects)), store, Retry())[0].values())
    assert sorted(("remove", *it) for it in objects) == sorted(store.asked)


def test_a_flow_asks_the_store_that_repeats_nothing():
    """Else a permanent 503 got 36 requests."""
    inner = Failing(*[BUSY] * 50)
    with pytest.raises(StoreError):
        run(asking(Get("k")), Retrying(inner, sleep=Time().sleep), Time().retry())

    assert 6 == len(inner.asked)


def asks_for(seconds):
    return StoreError("503 slow down", transient=True, retry_after=seconds)


class ReadsPass(Failing):
    """A store that fails at everything but reading."""

    def read(self, key):
        return self._store.read(key)


@pytest.mark.parametrize(
    ("flow", "kind"), [(lambda: asking(Get("k")), Failing), (settling, ReadsPass)], ids=["read", "put"]
)
def test_a_store_that_says_when_to_come_back_is_left_alone_until_then(flow, kind):
    store, time = kind(asks_for(20.0), asks_for(0.1), store=stored()), Time()
    run(flow(), store, time.retry(deadline=900.0))

    assert [20.0, 0.4] == time.pauses


def test_a_store_that_asks_for_more_than_the_deadline_leaves_is_not_waited_for():
    store, time = Failing(asks_for(500.0), asks_for(500.0)), Time()
    with pytest.raises(StoreError, match="slow down"):
        run(asking(Get("k")), store, time.retry(deadline=900.0))

    assert [500.0] == time.pauses


def test_the_deadline_counts_from_the_beginning_of_the_flow():
    class Slow(Failing):
        def put(self, key, buffers, mode):
            time.now += 899.0
            return super().put(key, buffers, mode)

    time = Time()
    store = Slow(asks_for(2.0), store=stored())
    with pytest.raises(StoreError):
        run(settling(), store, time.retry(deadline=900.0))
    assert [] == time.pauses


def test_each_repetition_is_an_event_also_that_of_a_conditional_request():
    events = []
    with listen(events.append):
        run(settling(), Failing(BUSY, store=stored()), Time().retry())

    assert [Repeated(error="503 busy", failures=1, pause=0.2)] == events


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), MemoryError()], ids=repr)
def test_ctrl_c_closes_the_flow_at_once_not_when_somebody_drops_the_traceback(error):
    closed = []

    def flow():
        try:
            yield Get("k")
        finally:
            closed.append(True)

    kept = flow()
    with pytest.raises(type(error)):
        run(kept, Failing(error), Retry())
    assert [True] == closed


def test_ctrl_c_in_a_pause_ends_it():
    def interrupted(seconds):
        raise KeyboardInterrupt

    store = Failing(BUSY)
    with pytest.raises(KeyboardInterrupt):
        run(asking(Get("k")), store, Retry(sleep=interrupted))
    assert 1 == len(store.asked)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_ends_of_many_objects_come_in_the_order_they_were_asked_for(count):
    place = Place.in_memory()
    store = place.store()
    for number in range(count):
        store.put(f"k{number}", [b"head", b"%06d" % number], "create")
    infos = tuple(ObjectInfo(f"k{number}", 10) for number in range(count))

    assert [tuple(b"%06d" % number for number in range(count))] == run(asking(Ends(infos, 6)), store, Retry())
    assert count == len(read_all(place))


def test_the_ends_of_many_objects_on_a_permanent_503_end_when_the_budget_is_spent():
    store = Failing(*[BUSY] * 1000)
    infos = tuple(ObjectInfo(f"k{number}", 10) for number in range(40))
    with pytest.raises(StoreError) as caught:
        run(asking(Ends(infos, 6)), store, Time().retry())

    assert BUSY is caught.value
    assert len(store.asked) < 6 + 16, "those that were under way when the budget was spent"
