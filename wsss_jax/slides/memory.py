"""Memory that was freed, given back to the system."""

import ctypes

# glibc's: other C libraries give back by themselves what is worth it.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Returns freed memory to the system, which takes milliseconds.

    Threads that read, compute and write arrays of all sizes leave gaps that glibc keeps: without
    it a process holds hundreds of megabytes more than it ever used at a time.
    """
    if _trim is not None:
        _trim(0)
