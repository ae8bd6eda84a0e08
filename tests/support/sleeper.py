"""A flow whose requests are performed one at a time, on a model of a store that keeps its word.

    sleeper = Sleeper(known.claim("ckpt"), model)    its first request is waiting
    sleeper.step()                                   is performed, and the next one is waiting
    perform(flow, model)                             all of them

Promises: between two steps nothing happens, so anything may be done to the model meanwhile.
"""

from functools import partial

from ckpt_remote.errors import ConflictError
from ckpt_remote.flow import Pause

__all__ = ["Sleeper", "perform"]


class Sleeper:
    """A flow that takes one step when it is told to."""

    def __init__(self, flow, model):
        self.flow, self.model, self.request, self.result, self.error = flow, model, None, None, None
        self._go_on(partial(next, flow))

    def step(self):
        try:
            answer = None if isinstance(self.request, Pause) else self.model.perform(self.request)
        except ConflictError as error:
            self._go_on(partial(self.flow.throw, error))
        else:
            self._go_on(partial(self.flow.send, answer))

    def finish(self):
        while self.request is not None:
            self.step()
        if self.error:
            raise self.error
        return self.result

    def _go_on(self, advance):
        try:
            self.request = advance()
        except StopIteration as stop:
            self.request, self.result = None, stop.value
        except ConflictError as error:
            self.request, self.error = None, error


def perform(flow, model):
    return Sleeper(flow, model).finish()
