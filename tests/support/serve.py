"""Run a server, and end with the process that started it.

`python serve.py MODULE [ARGUMENT ...]` for a server written in Python, `python serve.py /PATH/TO/PROGRAM
[ARGUMENT ...]` for any other: the starter holds our standard input and never writes. When it closes, because
the starter closed it or died in whatever way, so do we, and the program with us. The oldest Python of the
servers runs this file: standard library only.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from types import FrameType

__all__ = ["main"]

_GRACE_SECONDS = 5.0


def _end_with_starter(program: "subprocess.Popen[bytes] | None" = None) -> None:
    sys.stdin.buffer.read()
    # A polite end first: ministack removes its pid file on SIGTERM. The timer is for a server stuck in a
    # request.
    reaper = threading.Timer(_GRACE_SECONDS, _give_up, args=(program,))
    reaper.daemon = True
    reaper.start()
    os.kill(os.getpid(), signal.SIGTERM)


def _give_up(program: "subprocess.Popen[bytes] | None") -> None:
    if program is not None:
        program.kill()
    os._exit(1)


def _run_program(command: list[str]) -> int:
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(number: int, frame: FrameType | None) -> None:
        program.terminate()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_end_with_starter, args=(program,), daemon=True).start()
    return program.wait()


def main() -> None:
    """Serve until standard input closes."""
    name = sys.argv[1]
    if os.path.isabs(name):  # noqa: PTH117 - a module's name is no path
        sys.exit(_run_program(sys.argv[1:]))
    threading.Thread(target=_end_with_starter, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
