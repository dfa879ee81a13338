"""What the job "doctor" prints, a line for each subject."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A line about `subject`; the text of a problem says what to do."""

    subject: str
    text: str
    is_problem: bool = False
