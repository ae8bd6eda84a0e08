"""Many schedules, one world for each seed: those of `schedules`, or of `crews`.

    outcome = explore(World, range(1000))

Promises: the same seeds bring the same schedules; every broken promise is in the outcome, with its seed.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from support.schedules import BrokenPromiseError

__all__ = ["Outcome", "explore", "hunt", "quiet"]


@dataclass
class Outcome:
    """What many schedules came to."""

    schedules: int = 0
    requests: int = 0
    violations: list = field(default_factory=list)
    events: Counter = field(default_factory=Counter)

    def missing(self, *events):
        """Which of these have happened in no schedule."""
        return [event for event in events if not self.events[event]]

    def __str__(self):
        happened = ", ".join(f"{count:,} {event}" for event, count in sorted(self.events.items()) if count)
        return (
            f"{self.schedules:,} schedules, {self.requests:,} requests, {len(self.violations)} violations ({happened})"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Thousands of failures on purpose would be thousands of warnings."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@quiet()
def explore(world, seeds, *, stop_at_first=False, **arguments):
    """Runs one world for each seed.

    Args:
        world: Its class: `World`, or one that extends it.
        seeds: One for each schedule.
        stop_at_first: Whether the first broken promise is enough.
        arguments: What else the world is made of.
    """
    outcome = Outcome()
    for seed in seeds:
        schedule = world(seed, **arguments)
        try:
            schedule.run()
        except BrokenPromiseError as violation:
            outcome.violations.append((seed, str(violation)))
        outcome.schedules += 1
        outcome.requests += schedule.requests
        outcome.events.update(schedule.events)
        if outcome.violations and stop_at_first:
            break
    return outcome


def hunt(mutant, world, schedules, **arguments):
    """Looks for a schedule in which a promise breaks, says how that went, and returns the violations.

    Args:
        mutant: What took a rule away, by its name.
        world: As `explore`.
        schedules: How many it tries, at most.
        arguments: As `explore`.
    """
    outcome = explore(world, range(schedules), stop_at_first=True, **arguments)
    found = outcome.violations[0][1] if outcome.violations else "ALIVE"
    print(f"\n{mutant}: {outcome.schedules} schedules, then: {found[:150]}")
    return outcome.violations
