"""What ends a job before its time: something a user can mend, or a signal."""


class InputError(ValueError):
    """Something the user gave is wrong: a field, a file, a number.

    The message is one line that names the thing and the remedy; `main.py` prints it without a
    traceback and exits with code 2.
    """


class Preempted(Exception):
    """SIGTERM or SIGINT came; what was done is saved and the same command continues.

    `main.py` prints the message and exits with code 75, by convention "try again".
    """
