"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal) end what is under way with exit code 75.

Either `defer` work looks for itself whether it was told to stop, or the process unwinds from
where it is, so that `finally` and `with` leave nothing half-written. A second SIGINT ends it there
and then.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

EXIT_PREEMPTED = 75  # "temporary failure" of sysexits.h: try again
_EXIT_INTERRUPTED = 130  # what shells say of a process that SIGINT ended
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_KEY = 0.2  # seconds; launchers pass on the SIGINT that the terminal has sent already
_unwinding = _told = False


def handle() -> None:
    """From here on these signals end this process; call it first of all, in the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_sigint, args=(reader,), daemon=True).start()
    sys.unraisablehook = _unwind_later
    atexit.register(_ignore)  # the first of all, so done as the last
    restore_handlers()


def restore_handlers() -> None:
    """Takes the signals back from a library that has set its own handlers."""
    for number in _heeded():
        signal.signal(number, _unwind)


def _heeded() -> list[signal.Signals]:
    """All that stop a process, but for SIGHUP under `nohup`."""
    is_kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not is_kept]


def _ignore() -> None:
    """What is left is to exit: a signal now would give it another exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _unwind(number: int, _: FrameType | None) -> None:
    global _unwinding, _told
    if _unwinding:  # what cleans up is not interrupted
        return
    _unwinding = True
    if not _told:
        _told = True
        # Said at the end, when progress lines are closed.
        atexit.register(
            print,
            f"stopped by {signal.Signals(number).name}; the same command goes on, or begins again",
            file=sys.stderr,
        )
    # No `except Exception` takes it, and no library prints a traceback of it.
    raise SystemExit(EXIT_PREEMPTED)


def check() -> None:
    """Ends the process if it is to end, and a library has made another error of that."""
    if _unwinding:
        raise SystemExit(EXIT_PREEMPTED)


def _unwind_later(lost: "sys.UnraisableHookArgs") -> None:
    """Raises again what came up where nothing can be raised, such as in a finalizer."""
    if not (_unwinding and isinstance(lost.exc_value, SystemExit)):
        sys.__unraisablehook__(lost)
        return

    threading.Timer(0.01, _unwind_again).start()


def _unwind_again() -> None:
    global _unwinding
    _unwinding = False
    os.kill(os.getpid(), signal.SIGTERM)


def _end_at_second_sigint(reader: int) -> None:
    """Works even while the main thread is busy in a library, such as with compiling."""
    first = None
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT:
            now = time.monotonic()
            if first is not None and now - first > _ONE_KEY:
                os._exit(_EXIT_INTERRUPTED)
            first = first or now


@contextlib.contextmanager
def defer() -> Iterator[list[str]]:
    """A list that gets the name of a signal that comes, while nothing else happens.

    If the work ends without having heeded it, it does then what it does around the block.
    """
    received: list[str] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in _heeded()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        number = signal.Signals[received[0]]
        handler = before[number]
        if callable(handler):  # called, as a signal sent again would be a second one
            handler(number, None)
        else:
            signal.raise_signal(number)
