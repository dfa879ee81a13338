"""What a person's events amount to: the answers that hold, and what undo takes back next.

An event is never changed or removed. Undo is an event, too: it takes back the last one that holds,
of all or of a patch.
"""

from collections.abc import Container, Iterable
from typing import NamedTuple

SET, DONE, UNDO = "set", "done", "undo"
CANNOT_TELL = "?"  # instead of a label


class Event(NamedTuple):
    """Something that a person did, such as a key.

    Attributes:
      kind: "set" (a class of the patch), "done" (with the patch) or "undo".
      patch: number of the patch; of "undo", 0 means the last event of all that holds.
      value: of "set", class and 0 or 1, such as "2=1"; of "done", the label such as "0110", "?":
        cannot tell, or empty: there is no answer any more; of "undo", empty.
      looked: milliseconds that the person looked at the patch; of "done" only, else 0.
      time: milliseconds since 1970.
    """

    kind: str
    patch: int
    value: str = ""
    looked: int = 0
    time: int = 0


def is_answer(value: str, classes: int) -> bool:
    """Tells whether a value is a label of so many classes, or "cannot tell"."""
    return value == CANNOT_TELL or (len(value) == classes and not value.strip("01"))


class Replay:
    """The events of one person, taken one after the other.

    Attributes:
      answers: patch -> the "done" event that holds, in the order of the last answers.
      looked: patch -> milliseconds, of all its "done" events: corrections take time, too.
    """

    def __init__(self, events: Iterable[Event] = ()):
        self.answers: dict[int, Event] = {}
        self.looked: dict[int, int] = {}
        self._holding: list[Event] = []  # not taken back
        self._by_patch: dict[int, list[Event]] = {}
        for event in events:
            self.take(event)

    def take(self, event: Event) -> Event | None:
        """Takes an event; returns the one that it takes back, if it is an undo of anything."""
        if event.kind != UNDO:
            self._holding.append(event)
            self._by_patch.setdefault(event.patch, []).append(event)
            if event.kind == DONE:
                self.looked[event.patch] = self.looked.get(event.patch, 0) + event.looked
                self._answer(event)
            return None
        place = len(self._holding) - 1
        while event.patch and place >= 0 and self._holding[place].patch != event.patch:
            place -= 1
        if place < 0:
            return None
        undone = self._holding.pop(place)
        of_patch = self._by_patch[undone.patch]
        of_patch.pop()
        if undone.kind == DONE:
            self.answers.pop(undone.patch, None)
            for earlier in of_patch:  # an answer from before the patch was looked at again
                if earlier.kind == DONE:
                    self._answer(earlier)
        return undone

    def _answer(self, event: Event) -> None:
        self.answers.pop(event.patch, None)  # the order is that of the last answers
        if event.value:
            self.answers[event.patch] = event

    def find_last(self, patches: Container[int]) -> int | None:
        """Finds which of these patches the last event is of that holds; None: there is none."""
        return next((e.patch for e in reversed(self._holding) if e.patch in patches), None)

    def has(self, patch: int) -> bool:
        """Tells whether the person has ever done something with a patch."""
        return patch in self._by_patch

    def draft(self, patch: int) -> dict[int, int]:
        """Returns what is set of a patch, answered or not: class -> 0 or 1."""
        draft: dict[int, int] = {}
        for event in self._by_patch.get(patch, ()):
            if event.kind == SET:
                index, _, value = event.value.partition("=")
                draft[int(index)] = int(value)
            elif event.value not in (
                "",
                CANNOT_TELL,
            ):  # the answer says what was not set one by one, too
                draft = dict(enumerate(map(int, event.value)))
        return draft
