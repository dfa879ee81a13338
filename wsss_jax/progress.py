"""Progress lines of long work, and signals that stop it."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from wsss_jax import signals


@contextlib.contextmanager
def catch_termination() -> Iterator[list[str]]:
    """Yields a list that receives the name of a signal, which then does not end the process."""
    if jax.process_count() == 1:
        with signals.defer() as received:
            yield received
        return
    # JAX handles SIGTERM, so that all processes stop after the same step.
    before = signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield []
    finally:
        signal.signal(signal.SIGINT, before)


def show_progress(**options: Any) -> tqdm:
    """Opens a progress line: often updated on a terminal, a line now and then in a log file.

    Args:
      **options: of tqdm, such as `total` and `unit`.
    """
    return tqdm(mininterval=0.5 if sys.stderr.isatty() else 10, dynamic_ncols=True, **options)
