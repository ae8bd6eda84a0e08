"""One worker that meets the others: a directory in memory, a clock that only waiting moves, and what the others do.

    world.at(20.0, world.vote, plan(), 2, Part())      what another worker does, and when
    world.run(gather(plan(), ...))                     the flow under test; world.now tells how long it waited

Promises: no test waits; what the others do is what the library's own would write there.
"""

from dataclasses import replace

import pytest

from ckpt_remote.ballot import Plan
from ckpt_remote.commit import STATE
from ckpt_remote.directory import Directory
from ckpt_remote.flow import run
from ckpt_remote.member import Member
from ckpt_remote.origin import new_attempt, new_term
from ckpt_remote.probe import PLAN
from ckpt_remote.state import decode_state, encode_state
from ckpt_remote.store import Policy, Retry
from ckpt_remote.verdicts import AbandonedError
from ckpt_remote.workers import Workers
from support.places import Place
from support.watched import Watched

__all__ = ["TERM", "TIMEOUT", "URL", "World", "failure_of", "member", "plan"]

URL = "s3://bucket/run"
TERM = new_term()
TIMEOUT = 100.0


def plan(**named):
    """The leader's plan of the first save of three workers."""
    return Plan(**{
        "status": "open", "session": "5e55", "job": "job", "ordinal": 1, "size": 3, "attempt": new_attempt(TERM, 1),
        "path": "ckpt-1", "since": "", "state": "1d", **named,
    })  # fmt: skip


def member(rank=1, ordinal=0, *, is_behind=False, **named):
    """A worker that begins to save, and has been in that save of the leader's before."""
    me = Member(Workers(rank, 3, timeout=TIMEOUT, job="job"), URL, **named)
    me.attendance.agree(ordinal)
    me.begin(is_behind=is_behind)
    return me


class World:
    """A directory in memory, and a clock that only waiting moves.

    Attributes:
        events: What happens at which second.
        looks: When the plan was read.
        hand: Sees each request first.
    """

    def __init__(self):
        self.place, self.now, self.events, self.looks = Place.in_memory(), 0.0, [], []
        self.hand = lambda asked, perform: perform()
        self.store = Watched(self.place.store(), self._through)

    def _through(self, asked, perform):
        if asked.keys == (PLAN,) and asked.verb == "read":
            self.looks.append(self.now)
        return self.hand(asked, perform)

    def _sleep(self, seconds):
        self.now += seconds
        for event in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(event)
            event[1]()

    def run(self, flow):
        policy = Policy(attempts=2, first_delay=0.0, longest_delay=0.0)
        return run(flow, self.store, Retry(policy, clock=lambda: self.now, sleep=self._sleep))

    def put(self, key, data):
        self.place.store().put(key, [data], "overwrite")

    def show(self, plan):
        self.put(PLAN, plan.encode())

    def at(self, second, call, *arguments):
        self.events.append((second, lambda: call(*arguments)))

    def remove(self, key):
        self.place.store().delete([key])

    def claim(self, times=1):
        """Somebody claims the directory so often, and saves nothing."""
        for _ in range(times):
            known = Directory(URL)
            for flow in (known.load(), known.claim("ckpt")):
                run(flow, self.place.store(), Retry())

    def commit(self, plan, *later):
        """The state says that the attempt is visible, and what was written since."""
        self.write_state(plan, plan.state, *later)

    def write_state(self, plan, *writes):
        """The state is written so often after what the attempt builds upon."""
        self.claim()
        state = decode_state(self.place.store().read(STATE).data, path=STATE, directories=(URL,))
        last, *before = reversed(writes)
        record = replace(
            state.record, write_id=last, lineage=(*before, "0d")[:32], term=plan.attempt.term,
            serial=plan.attempt.serial + len(writes),
        )  # fmt: skip
        self.put(STATE, encode_state(replace(state, record=record)))

    def own(self):
        """The leader claims the directory, and knows the version of its state."""
        self.claim()
        return self.place.store().read(STATE).version

    def vote(self, plan, rank, part=None, by=None):
        """A worker joins, and votes if it is said what."""
        by = by or new_attempt(TERM, 1)
        self.put(plan.key("join", rank), by.seal(plan.key("join", rank)))
        if part is not None:
            self.put(plan.key("part", rank), part.encode() + by.seal(plan.key("part", rank)))
        return by


def failure_of(world, flow):
    with pytest.raises(AbandonedError) as raised:
        world.run(flow)
    return raised.value.failure
