"""What ends a job before its time: something a user can mend, or a signal."""


class InputError(ValueError):
    """Something the user gave is wrong: a field, a file, a number.

    The message is one line that names the thing and the remedy; `main.py` prints it without a
    traceback and exits with code 2.
    """


class Busy(InputError):
    """Another process holds a lock."""


class Preempted(Exception):
    """SIGTERM or SIGINT came; what was done is saved and the same command continues.

    `main.py` prints the message and exits with code 75, by convention "try again".
    """


def describe_shortage(error: BaseException) -> str:
    """Says which memory was short, as in "memory was short (...)"; "" if the error is another."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return ""
    what = (str(error).splitlines() or ["of the host"])[0][:200]
    return f"memory was short ({what})"
