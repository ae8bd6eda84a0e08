"""Names of options: one that nobody knows is a mistake, and fsspec's filesystems would swallow it."""

import difflib
from collections.abc import Collection

__all__ = ["require_known"]


def require_known(group: str, names: Collection[str], known: Collection[str], scheme: str) -> None:
    """Pass if every name is known.

    Args:
        group: What the names stand in, for messages.
        names: The names that were given.
        known: The names that there are.
        scheme: Which URLs they are for, for messages.

    Raises:
        ValueError: A name is unknown; the message tells the nearest, and all of them.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{group} has no option {name!r} for {scheme}://.{hint} There are: {', '.join(sorted(known))}."
            )
