"""Processes that work for this one: they end with it, however it ends, and leave signals to it."""

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

_WATCH = 0.2  # seconds between two looks


def initialize(*_: int) -> None:
    """What a worker process does first; takes, and leaves aside, its number and how many it has."""
    # They reach all processes of a terminal: the first one saves, and needs them meanwhile.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A pipe, which the kernel closes even if the parent is killed.
        connection.wait([parent.sentinel])
    else:  # it is still being started
        number = os.getppid()
        while os.getppid() == number:
            time.sleep(_WATCH)
    os._exit(1)


@contextlib.contextmanager
def block_signals(*numbers: signal.Signals) -> Iterator[None]:
    """These signals do not reach the threads and processes that are started in the block.

    They are not ignored but blocked, which holds from the first instruction of a process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        if numbers:
            resource_tracker.ensure_running()  # when it is started, it unblocks some
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def open_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes for the length of a block; what has not begun at its end is left undone.

    Raises:
      InputError: one of them was killed.
    """
    with block_signals(signal.SIGHUP):  # which would end the process that counts semaphores
        executor = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=initialize
        )
    try:
        # SIGTERM reaches them: by it the executor ends those that are left when one has died. A
        # process that is half started prints a traceback.
        with signals.defer(), block_signals(signal.SIGINT, signal.SIGHUP):
            executor.submit(os.getpid)  # with the first task all are started
        yield executor
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died: give the same command again, with fewer --config.workers if "
            "memory was short"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
