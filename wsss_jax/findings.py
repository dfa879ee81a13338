"""What the job "doctor" prints, a line for each subject."""

from typing import NamedTuple

OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "PROBLEM"


class Finding(NamedTuple):
    """A line about `subject`; `state` is its first word, and the text of a problem the remedy."""

    subject: str
    text: str
    state: str = OK
