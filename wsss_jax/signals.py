"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal) end a process with exit code 75.

Work in a `defer` block checks for signals itself. Elsewhere the process unwinds from where it is,
so that `finally` and `with` leave nothing half-written. A second SIGINT ends it at once.
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

EXIT_PREEMPTED = 75  # sysexits.h: temporary failure, try again
_EXIT_INTERRUPTED = 130  # what shells report for a process that SIGINT ended
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SAME_KEY = 0.2  # seconds; launchers repeat the SIGINT that the terminal has sent already
_is_unwinding = _is_reported = False


def handle() -> None:
    """Lets these signals end the process from now on; call it first, in the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_sigint, args=(reader,), daemon=True).start()
    sys.unraisablehook = _unwind_later
    atexit.register(_ignore_signals)  # registered first, so called last
    restore_handlers()


def restore_handlers() -> None:
    """Sets the handlers again after a library has set its own."""
    for number in _list_signals():
        signal.signal(number, _unwind)


def _list_signals() -> list[signal.Signals]:
    """Lists the signals that stop a process, without SIGHUP under `nohup`."""
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not is_nohup]


def _ignore_signals() -> None:
    """Ignores signals while the interpreter exits; they would change its exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _unwind(number: int, _: FrameType | None) -> None:
    global _is_unwinding, _is_reported
    if _is_unwinding:  # clean-up is not interrupted
        return
    _is_unwinding = True
    if not _is_reported:
        _is_reported = True
        # Printed at the end, when progress lines are closed.
        atexit.register(
            print,
            f"stopped by {signal.Signals(number).name}; the same command continues, or starts over",
            file=sys.stderr,
        )
    # No `except Exception` catches it, and no library prints a traceback for it.
    raise SystemExit(EXIT_PREEMPTED)


def check() -> None:
    """Ends the process if a signal has come that a library has turned into another error."""
    if _is_unwinding:
        raise SystemExit(EXIT_PREEMPTED)


def _unwind_later(lost: "sys.UnraisableHookArgs") -> None:
    """Repeats an exit that was raised where Python ignores exceptions, such as in a finalizer."""
    if not (_is_unwinding and isinstance(lost.exc_value, SystemExit)):
        sys.__unraisablehook__(lost)
        return
    threading.Timer(0.01, _unwind_again).start()


def _unwind_again() -> None:
    global _is_unwinding
    _is_unwinding = False
    os.kill(os.getpid(), signal.SIGTERM)


def _end_at_second_sigint(reader: int) -> None:
    """Ends the process even while the main thread is busy in a library, such as compiling."""
    first = None
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT:
            now = time.monotonic()
            if first is not None and now - first > _SAME_KEY:
                os._exit(_EXIT_INTERRUPTED)
            first = first or now


@contextlib.contextmanager
def defer() -> Iterator[list[str]]:
    """Yields a list that receives the names of signals, which have no other effect in the block.

    If there is one at the end of the block, it then has the effect that it has outside. Signals
    concern the main thread alone; in another one nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    received: list[str] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in _list_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        number = signal.Signals[received[0]]
        handler = before[number]
        if callable(handler):  # called, since another signal would count as a second one
            handler(number, None)
        else:
            signal.raise_signal(number)
