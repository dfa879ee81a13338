"""Memory: what was freed is given back to the system, and too little of it becomes a line."""

import ctypes

import jax

# glibc's: other C libraries give back by themselves what is worth it.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Returns freed memory to the system, which takes milliseconds.

    Threads that read, compute and write arrays of all sizes leave gaps that glibc keeps: without
    it a process holds hundreds of megabytes more than it ever used at a time.
    """
    if _trim is not None:
        _trim(0)


def shortage(error: MemoryError | jax.errors.JaxRuntimeError) -> str:
    """What is short and what to do about it; empty where the error is about something else."""
    if isinstance(error, MemoryError):
        return "memory was short; lower --config.batch_size"
    if "RESOURCE_EXHAUSTED" in str(error):
        return "the device's memory was short; lower --config.batch_size"
    return ""
