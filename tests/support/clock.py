"""Time that passes only when it is told to."""

__all__ = ["Time"]


class Time:
    """A clock that sleeping and the test move."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
