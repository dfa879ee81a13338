"""The labeling under way: who has which patches to answer, what each has said, what comes next."""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wsss_jax.errors import InputError
from wsss_jax.labels import order
from wsss_jax.labels.replay import DONE, SET, UNDO, Event, Replay, is_answer
from wsss_jax.labels.store import ANNOTATOR, CHIEF, Person, Store, check_key

_LONGEST_LOOK = 24 * 3600 * 1000  # milliseconds
_RECENT = 50  # answers over which the pace is averaged


class Dealing(NamedTuple):
    """How patches are shared out and sorted; see `order`.

    Attributes:
      overlap: share of the patches that all annotators label.
      seed: of dealing and sorting.
      priority: name of the patch -> how early it is to be shown; None = at random.
      random_share: of the patches that are shown at random in spite of a priority.
      leave_out: names of people whose answers do not count.
    """

    overlap: float = 1.0
    seed: int = 0
    priority: Mapping[str, float] | None = None
    random_share: float = 1.0
    leave_out: tuple[str, ...] = ()


class Progress(NamedTuple):
    """How far a person is.

    Attributes:
      done: answered patches, of those that are theirs.
      total: patches that are theirs.
      seconds: mean of looking at one of the last patches; None before the first.
    """

    done: int
    total: int
    seconds: float | None


class Undone(NamedTuple):
    """What was taken back, and of which patch."""

    kind: str
    patch: int


class Desk:
    """All that the pages know. Its methods may be called from several threads.

    Attributes:
      classes: C names.
      names: number of the patch -> its name, of the patches that are there now.
      people: by number, all who ever answered.
      annotators: those who label now.
      expected: number of the patch -> names of the annotators who are to answer it.
    """

    def __init__(
        self, store: Store, patches: Sequence[str], annotators: Sequence[str], dealing: Dealing
    ):
        """Reads the database, and deals the patches.

        Args:
          store: the database, which has these people.
          patches: names of those that are there; of these, what the database has not is left out.
          annotators: names of those who label.
          dealing: how.
        """
        self._store, self._lock, self._dealing = store, threading.Lock(), dealing
        self.classes = store.list_classes()
        numbers = store.list_patches()
        self.names = {numbers[name]: name for name in patches if name in numbers}
        self.people = {person.number: person for person in store.list_people()}
        by_name = {person.name: person for person in self.people.values()}
        self.annotators = tuple(by_name[name] for name in annotators)
        settled = Replay()  # chiefs settle together: each can take back what another has
        self._replays = {
            number: settled if person.role == CHIEF else Replay()
            for number, person in self.people.items()
        }
        # Of each person the last event's key, and what it took back, should it be sent again.
        self._last: dict[int, tuple[str, Undone | None]] = {}
        for recorded in store.list_events():
            undone = self._replays[recorded.person].take(recorded.event)
            self._last[recorded.person] = recorded.key, _name_undone(undone)
        self.expected = {number: self._deal(number, annotators) for number in self.names}
        self._queues = {
            person.number: [
                numbers[name]
                for name in order.sort_patches(
                    [self.names[n] for n, names in self.expected.items() if person.name in names],
                    person.name,
                    dealing.seed,
                    dealing.priority,
                    dealing.random_share,
                )
            ]
            for person in self.annotators
        }
        self._places = {
            person: {patch: place for place, patch in enumerate(queue)}
            for person, queue in self._queues.items()
        }
        self._first = dict.fromkeys(self._queues, 0)  # no open patch is before this place

    def _deal(self, number: int, annotators: Sequence[str]) -> tuple[str, ...]:
        """Says who is to answer a patch; one for a single person stays with who has answered it."""
        name, seed, overlap = self.names[number], self._dealing.seed, self._dealing.overlap
        if not annotators:
            return ()
        if not order.is_shared(name, overlap, seed):
            answered = [
                person.name
                for person in self.list_voters()
                if person.role == ANNOTATOR and number in self._replays[person.number].answers
            ]
            if answered:
                return tuple(answered)
        return order.deal_patch(name, annotators, overlap, seed)

    def list_voters(self) -> list[Person]:
        """Lists people whose answers count, and who have given any."""
        return [
            person
            for person in self.people.values()
            if person.role != CHIEF
            and person.name not in self._dealing.leave_out
            and self._replays[person.number].answers
        ]

    def is_random(self, number: int) -> bool:
        """Tells whether a patch is shown whatever its priority; see `order.is_random`."""
        dealing = self._dealing
        return order.is_random(self.names[number], dealing.random_share, dealing.seed)

    def list_next(self, person: int, count: int, after: int = 0) -> list[int]:
        """Lists the next patches that a person has not answered.

        Args:
          person: whose.
          count: at most so many.
          after: only patches that come after this one in the person's order; 0 = all.
        """
        with self._lock:
            queue, answers = self._queues[person], self._replays[person].answers
            first = self._first[person]
            while first < len(queue) and queue[first] in answers:
                first += 1
            self._first[person] = first
            start = max(first, self._places[person].get(after, -1) + 1)
            found: list[int] = []
            for patch in queue[start:]:
                if len(found) == count:
                    break
                if patch not in answers:
                    found.append(patch)
            return found

    def is_theirs(self, person: Person, patch: int) -> bool:
        """Whether a person may see and answer a patch: an annotator the own ones, a chief all."""
        if person.role == CHIEF:
            return patch in self.names
        own = patch in self._places.get(person.number, ())
        # What was answered before patches were dealt otherwise can be taken back, and given again.
        return own or (patch in self.names and self._replays[person.number].has(patch))

    def take(self, person: Person, key: str, event: Event) -> Undone | None:
        """Stores what a person did, and then takes it for true.

        Args:
          person: who.
          key: chosen by the sender; what is sent twice with one key counts once.
          event: what.

        Returns:
          What an undo took back.

        Raises:
          InputError: the event makes no sense; nothing is stored.
        """
        self._check(person, key, event)
        with self._lock:
            (new,) = self._store.add_events(person.number, [(key, event)])
            if not new:
                last, undone = self._last.get(person.number, ("", None))
                return undone if last == key else None
            undone = _name_undone(self._replays[person.number].take(event))
            self._last[person.number] = key, undone
            place = self._places.get(person.number, {}).get(undone.patch) if undone else None
            if place is not None:
                self._first[person.number] = min(self._first[person.number], place)
            return undone

    def _check(self, person: Person, key: str, event: Event) -> None:
        check_key(key)
        if not 0 <= event.looked <= _LONGEST_LOOK:
            raise InputError(f"{event.looked} milliseconds of looking are impossible")
        if event.kind == UNDO:
            if event.patch or event.value:
                raise InputError("an undo names neither patch nor value")
            return
        if not self.is_theirs(person, event.patch):
            raise InputError(f"patch {event.patch} is not one of {person.name}")
        if event.kind == SET:
            allowed = event.value in {f"{c}={v}" for c in range(len(self.classes)) for v in (0, 1)}
        elif event.kind == DONE:
            allowed = is_answer(event.value, len(self.classes))
        else:
            raise InputError(f"there is no event {event.kind!r}")
        if not allowed:
            raise InputError(f"{event.value!r} is no answer for {len(self.classes)} classes")

    def draft(self, person: int, patch: int) -> dict[int, int]:
        """Returns what a person has set of a patch, answered or not: class -> 0 or 1."""
        with self._lock:
            return self._replays[person].draft(patch)

    def answers(self, person: int) -> dict[int, Event]:
        """Returns the answers that hold: patch -> event."""
        with self._lock:
            return dict(self._replays[person].answers)

    def measure_progress(self, person: int) -> Progress:
        """Measures how far an annotator is, and how fast."""
        with self._lock:
            replay, own = self._replays[person], self._places[person]
            answers = replay.answers
            looks: list[int] = []
            for patch in reversed(answers):
                if len(looks) == _RECENT:
                    break
                if replay.looked[patch]:
                    looks.append(replay.looked[patch])
            # Patches may have gone since they were answered.
            gone = sum(patch not in own for patch in answers)
        seconds = sum(looks) / len(looks) / 1000 if looks else None
        return Progress(len(answers) - gone, len(own), seconds)


def _name_undone(event: Event | None) -> Undone | None:
    return Undone(event.kind, event.patch) if event else None


def parse_event(body: bytes, time: int) -> tuple[int, str, Event]:
    """Reads an event as pages send it: JSON with person, key, kind, patch, value and looked.

    Returns:
      Number of the person whom the page is for, key, event.

    Raises:
      InputError: it is something else.
    """
    try:
        fields: Any = json.loads(body)
        person, key, kind, patch, value, looked = (
            fields[name] for name in ("person", "key", "kind", "patch", "value", "looked")
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"an event is JSON with person, key, kind, patch, value, looked: {error}"
        ) from error
    if not all(isinstance(text, str) and text.isascii() for text in (key, kind, value)):
        raise InputError("key, kind and value of an event are texts of ASCII")
    if not all(type(number) is int for number in (person, patch, looked)):
        raise InputError("person, patch and looked of an event are whole numbers")
    if not 0 <= patch < 2**53:
        raise InputError(f"there is no patch {patch}")
    return person, key, Event(kind, patch, value, looked, time)
