"""Run a server module as a program, and end with the process that started it.

`python serve.py MODULE [ARGUMENT ...]`: the starter holds our standard input and never writes. When it
closes, because the starter closed it or died in whatever way, so do we. The oldest Python of the servers runs
this file: standard library only.
"""

import os
import runpy
import signal
import sys
import threading

__all__ = ["main"]

_GRACE_SECONDS = 5.0


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    # A polite end first: ministack removes its pid file on SIGTERM. The timer is for a server stuck in a
    # request.
    reaper = threading.Timer(_GRACE_SECONDS, os._exit, args=(1,))
    reaper.daemon = True
    reaper.start()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve until standard input closes."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
