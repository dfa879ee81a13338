"""Memory: returning freed memory to the system, and errors for lack of it as one line."""

import ctypes

import jax

# glibc's; other C libraries return freed memory by themselves.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def release_freed() -> None:
    """Returns freed memory to the system, in milliseconds.

    Threads that read, compute and write arrays of all sizes leave gaps that glibc keeps: without
    this call a process holds hundreds of megabytes more than it ever used at a time.
    """
    if _trim is not None:
        _trim(0)


def describe_shortage(error: MemoryError | jax.errors.JaxRuntimeError) -> str:
    """Says which memory was short and what to do; "" if the error is about something else."""
    if isinstance(error, MemoryError):
        return "memory was short; lower --config.batch_size"
    if "RESOURCE_EXHAUSTED" in str(error):
        return "the device's memory was short; lower --config.batch_size"
    return ""
