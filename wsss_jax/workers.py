"""Worker processes, which end with this process however it ends, and leave signals to it."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, resource_tracker

from wsss_jax import signals
from wsss_jax.errors import InputError

_POLL = 0.2  # seconds between two checks


def initialize(*_: int) -> None:
    """Initializes a worker process; ignores its arguments (Grain gives index and count)."""
    # These signals reach all processes of a terminal; the parent needs its workers while it saves.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A pipe that the kernel closes even if the parent is killed.
        connection.wait([parent.sentinel])
    else:  # this process is still starting
        number = os.getppid()
        while os.getppid() == number:
            time.sleep(_POLL)
    os._exit(1)


@contextlib.contextmanager
def block_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Blocks signals for the threads and processes that are started in the block.

    They are blocked, not ignored, which holds from the first instruction of a process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        if numbers:
            resource_tracker.ensure_running()  # its start unblocks some signals
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process(multiprocessing.context.SpawnProcess):
    """A process of a pool, which starts them one by one when there is work for them."""

    def start(self) -> None:
        # SIGTERM is not blocked: with it, the executor ends the other processes when one has died.
        # It is deferred, since a process that gets one while it starts prints a traceback.
        with signals.defer(), block_signals(signal.SIGINT, signal.SIGHUP):
            super().start()


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


@contextlib.contextmanager
def open_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of processes for the block; tasks that have not begun at its end are dropped.

    Raises:
      InputError: one of the processes was killed.
    """
    with block_signals(signal.SIGHUP):  # it would end the process that tracks semaphores
        executor = ProcessPoolExecutor(workers, mp_context=_Context(), initializer=initialize)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died: give the same command again, with fewer --config.workers if "
            "memory was short"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
