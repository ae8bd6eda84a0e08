"""How long a request may take: a fixed time, and longer the more bytes it carries."""

__all__ = ["CONNECT_SECONDS", "PATIENCE", "seconds_for"]

PATIENCE = 20.0
"""Seconds for a request that carries next to nothing."""

CONNECT_SECONDS = 5.0
"""Seconds for a connection to stand."""

_LEAST_RATE = 64 * 1024.0  # bytes a second: dozens of requests share a link, also a slow one


def seconds_for(size: int, patience: float = PATIENCE) -> float:
    """The deadline of a request that carries `size` bytes."""
    return patience + size / _LEAST_RATE
