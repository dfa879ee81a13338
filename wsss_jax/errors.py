"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Something the user gave is wrong: a field, a file, a number.

    The message is one line that names the thing and the remedy; `main.py` prints it without a
    traceback and exits with code 2.
    """
