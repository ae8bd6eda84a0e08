"""Every fault, and every pair of faults, in a training; by itself, or by a process for each core.

    python -m support.fault_search '{"attempts": 1, "share": 0, "of": 2, …}'      prints a summary, as JSON

A second fault can befall whatever is asked after the first: what that is, a run with the first alone tells. No request
depends on chance, so that is the same in each process.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import ckpt_remote
from ckpt_remote.store import Retrying, Store
from ckpt_remote.tap import capture
from support.faulted import URL, Exposed, Fault, Genuine, ModelStore, Quick, Training, known_index, known_state
from support.schedules import Model

__all__ = ["ALL", "FEWER", "Kinds", "Outcome", "search_pairs", "search_singles", "stage"]

Kinds = tuple[Sequence[Fault], Sequence[Fault]]
ALL: Kinds = ((Fault.DENIED, Fault.SILENT, Fault.CRASH), tuple(Fault))
"""What can befall a read, and what a write."""
FEWER: Kinds = ((Fault.SILENT, Fault.CRASH), tuple(fault for fault in Fault if fault is not Fault.SILENT))
"""Without what to the client looks the same as another: a write that never lands as one that lands late, and so on.

And without what leaves the same behind as a crash before the next request of the same save: one at a read, and one
after a write has landed.
"""


@dataclass
class Outcome:
    """What many runs came to.

    Attributes:
        violations: Plans, as text, and the promise that each broke.
    """

    runs: int = 0
    requests: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        happened = ", ".join(f"{count:,} {what}" for what, count in sorted(self.happened.items()))
        return f"{self.runs:,} runs, {self.requests:,} requests, {len(self.violations)} violations ({happened})"

    def add(self, other: "Outcome") -> None:
        self.runs += other.runs
        self.requests += other.requests
        self.happened.update(other.happened)
        self.violations += other.violations


class Stage:
    """Where trainings run one after the other.

    Args:
        trained: What is saved: `Genuine` or `Quick`.
        attempts: How often the managers may try a request.
        generations: Whether versions never repeat, or are digests of the bytes.
    """

    def __init__(self, trained: Any, attempts: int, *, generations: bool) -> None:
        self.outcome = Outcome()
        self._trained, self._attempts, self._generations = trained, attempts, generations
        self._model = Model(generations)
        self._store: Store = Retrying(ModelStore(self._model))

    def open_store(self, *arguments: object) -> Any:
        """In place of the library's."""
        return self._store

    def prepare(self) -> None:
        """Puts an older checkpoint there, and another's under a name that no state lists."""
        manager = ckpt_remote.CheckpointManager(self._trained.checkpoint, URL, 1)
        older = manager.save()
        objects = self._model.objects
        for key in [key for key in objects if key.startswith(older.rpartition("/")[2])]:
            self._store.put(key.replace("ckpt-1", "foreign-1"), [objects[key].data], "create")
        self._store.put("ckpt-2.data-00000-of-00009", [b"somebody's, without a seal"], "create")
        self._before = dict(objects)

    def run(self, plan: dict[int, Fault]) -> Training:
        """One training; a violation is noted."""
        training = Training(plan, self._trained, self._before, attempts=self._attempts, generations=self._generations)
        self._store = training.store
        try:
            training.run()
        except Exception as error:  # noqa: BLE001 - whatever comes out of a manager here is a broken promise
            described = ", ".join(f"{number}: {fault.name}" for number, fault in plan.items())
            self.outcome.violations.append((described, f"{type(error).__name__}: {error}"))
        self.outcome.runs += 1
        self.outcome.requests += training.requests
        self.outcome.happened.update(training.outcomes)
        return training


def _one_after_the_other(tasks: Any, **_: Any) -> Any:
    """In place of `run_all`: the requests of several threads would come in any order."""
    return [task() for task in tasks]


@contextlib.contextmanager
def stage(*, genuine: bool, attempts: int, generations: bool = False) -> Iterator[Stage]:
    """A stage, until the block ends: the managers of this process save to it, two data objects a checkpoint."""
    trained: Any = Genuine()
    if not genuine:
        trained = Quick(capture(trained.checkpoint, "ckpt-1", None))
    made = Stage(trained, attempts, generations=generations)
    replaced = {
        "ckpt_remote.manager.open_store": made.open_store,
        "ckpt_remote.checkpoint.shard_size": lambda total: 512,
        "ckpt_remote.flow.run_all": _one_after_the_other,
        "ckpt_remote.upload.run_all": _one_after_the_other,
        "ckpt_remote.reader.run_all": _one_after_the_other,
    }
    if not genuine:
        replaced["ckpt_remote.saving.capture"] = trained.capture
        replaced["ckpt_remote.checkpoint.local_device"] = lambda: "CPU:0"
        for module in ("commit", "reader"):
            replaced[f"ckpt_remote.{module}.decode_index"] = lambda data, **_: known_index(data)
        for module in ("commit", "ownership"):
            replaced[f"ckpt_remote.{module}.decode_state"] = lambda data, **_: known_state(data)
    with contextlib.ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(mock.patch(name, replacement))
        made.prepare()
        yield made


def search_singles(*, genuine: bool, attempts: int, generations: bool = False) -> Outcome:
    """Runs without a fault, and with each one."""
    with stage(genuine=genuine, attempts=attempts, generations=generations) as made:
        for _ in _singles(made, ALL):
            pass
        return made.outcome


def search_pairs(kinds: Kinds, *, attempts: int, generations: bool = False) -> Outcome:
    """Runs with every pair of faults, in a process for each core."""
    outcome = Outcome()
    of = os.cpu_count() or 1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with contextlib.ExitStack() as stack:
        workers = []
        for share in range(of):
            order = {"all": kinds is ALL, "attempts": attempts, "generations": generations, "share": share, "of": of}
            command = [sys.executable, "-m", "support.fault_search", json.dumps(order)]
            workers.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)))
        for worker in workers:
            assert worker.stdout is not None
            found = json.loads(worker.stdout.read())
            outcome.add(Outcome(**{**found, "happened": Counter(found["happened"])}))
    return outcome


def _singles(made: Stage, kinds: Kinds) -> Iterator[tuple[int, Fault, list[Exposed]]]:
    """Each single fault, and the requests that come in a run with it."""
    for number, fault in _faults(kinds, made.run({}).exposed, 0):
        yield number, fault, made.run({number: fault}).exposed


def _faults(kinds: Kinds, exposed: Sequence[Exposed], first: int) -> Iterator[tuple[int, Fault]]:
    """What can befall these requests, from the `first` on."""
    for number in range(first, len(exposed)):
        asked, following = exposed[number], exposed[number + 1 : number + 2]
        is_followed = bool(following) and following[0].save == asked.save
        for fault in kinds[asked.writes]:
            if fault is not (Fault.CRASH_LANDED if asked.writes else Fault.CRASH) or not is_followed or kinds is ALL:
                yield number, fault


def _pairs(made: Stage, kinds: Kinds, share: int, of: int) -> None:
    for turn, (first, fault, exposed) in enumerate(_singles(made, kinds)):
        if turn % of == share:
            for second, other in _faults(kinds, exposed, first + 1):
                made.run({first: fault, second: other})


def main() -> None:
    """One process's share of the pairs."""
    order = json.loads(sys.argv[1])
    with stage(genuine=False, attempts=order["attempts"], generations=order["generations"]) as made:
        gc.freeze()  # TensorFlow's million objects are not looked through again and again
        _pairs(made, ALL if order["all"] else FEWER, order["share"], order["of"])
    print(json.dumps(vars(made.outcome)))


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)  # thousands of failures on purpose would be thousands of warnings
    main()
