"""What an examination finds."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A line of an examination: a text about `what`; a problem says what to do."""

    what: str
    text: str
    is_problem: bool = False
