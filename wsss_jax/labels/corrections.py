"""Corrections of maps: on a wrong place a person says which classes the patch there has.

Each is an answer in a database of labels, of a patch that is cut out of the slide at that place.
The picture is on the disk before the event, the event before the answer to the person; the tables
follow from both. Whatever is cut off in between is completed or removed at the next start.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from wsss_jax.errors import InputError
from wsss_jax.files import clear_unfinished, hold_lock
from wsss_jax.labels import correction_folder, project
from wsss_jax.labels.correction_folder import Origin, find_slide, get_place
from wsss_jax.labels.correction_slides import CorrectedSlides
from wsss_jax.labels.replay import DONE, UNDO, Event, Replay, is_answer
from wsss_jax.labels.store import ANNOTATOR, Store, check_key, open_store
from wsss_jax.sampling import summaries
from wsss_jax.sampling.splits import Patient
from wsss_jax.slides.reading.catalog import SlideFile

DATABASE = "labels.sqlite"


class Correction(NamedTuple):
    """What a person said of a place.

    Attributes:
      number: of the patch, in the database.
      slide: its name.
      x, y: center in level-0 pixels; given again, they lead to the same patch.
      size: side in level-0 pixels across.
      answer: such as "0110", or "?": cannot tell.
      person: name.
      time: milliseconds since 1970.
    """

    number: int
    slide: str
    x: float
    y: float
    size: float
    answer: str
    person: str
    time: int


class Undone(NamedTuple):
    """What was taken back, and what the person says of that place now, if anything."""

    undone: Correction
    now: Correction | None


class Asked(NamedTuple):
    """What a person asks for: a new answer, or to take back the last.

    Attributes:
      person: name.
      key: chosen by the sender; what is sent twice with one key counts once.
      time: milliseconds since 1970.
    """

    person: str
    key: str
    time: int


@contextmanager
def open_corrections(
    root: Path, origin: Origin, patients: Mapping[str, Patient] | None = None
) -> Iterator["Corrections"]:
    """Opens a folder of corrections, which one process at a time may write; begins a new one.

    Args:
      root: the folder.
      origin: what the networks of the maps learned from.
      patients: by slide, as the user gives them; see `splits.read_patients`.

    Raises:
      InputError: it has other files, other patches or classes, or another process works in it.
    """
    with hold_lock(root / f".{DATABASE}.lock"), ExitStack() as stack:
        record = correction_folder.begin(root, origin.dataset, origin.field)
        clear_unfinished(root)
        store = stack.enter_context(open_store(root / DATABASE, origin.dataset.classes))
        slides = CorrectedSlides(root, record, origin.training, patients or {})
        stack.callback(slides.close)
        corrections = Corrections(root, store, slides)
        corrections.complete()
        yield corrections


class Corrections:
    """The corrections of the slides of a cohort. Several threads may call its methods.

    Attributes:
      classes: C names.
    """

    def __init__(self, root: Path, store: Store, slides: CorrectedSlides):
        """Reads what was answered; see `open_corrections`, which holds the folder.

        Raises:
          InputError: the database has corrections of a slide that the folder does not know.
        """
        self.classes = store.list_classes()
        self._root, self._store, self._slides = root, store, slides
        self._lock = threading.Lock()
        self._people: dict[str, int] = {}  # name -> number
        self._replays: dict[int, Replay] = {}  # by person
        self._names: dict[int, str] = {}  # of people, by number
        self._patches: dict[str, int] = {}  # of slides: name -> number
        self._by_number: dict[int, str] = {}
        self._read_people()
        self._read_patches()
        # What became of each key, should it be sent again.
        self._outcomes: dict[tuple[int, str], Correction | Undone | None] = {}
        for recorded in store.list_events():
            outcome = self._take(recorded.person, recorded.event)
            self._outcomes[recorded.person, recorded.key] = outcome

    def complete(self) -> None:
        """Completes or removes what an earlier start left unfinished."""
        answered = self._list_answered()
        for name in answered:
            if not (self._root / name).is_file():
                try:
                    self._slides.cut(name)
                except (InputError, OSError) as error:
                    tqdm.write(f"{self._root / name} is gone, and is not cut again: {error}")
        for slide in self._slides.record.slides:
            folder = self._root / summaries.KEPT / slide
            if not folder.is_dir():
                continue
            for path in folder.glob("*.png"):
                name = path.relative_to(self._root).as_posix()
                if name not in answered and find_slide(name) == slide:
                    path.unlink()
        self._write_tables()
        self._save_settings()

    def take(
        self, asked: Asked, slide: SlideFile, center: tuple[float, float], answer: str
    ) -> Correction:
        """Takes a person's answer to a place; a later one to the same place counts instead.

        Args:
          asked: who, and when.
          slide: the slide.
          center: x and y in level-0 pixels. Near a border the patch is moved inside the slide.
          answer: such as "0110", or "?": cannot tell.

        Returns:
          What this person says there.

        Raises:
          InputError: no such answer, or a slide that cannot be read or is another one than before;
            nothing is stored.
        """
        check_key(asked.key)
        if not is_answer(answer, len(self.classes)):
            raise InputError(f"{answer!r} is no answer for {len(self.classes)} classes")
        with self._lock:
            outcome = self._find_outcome(asked)
            if not isinstance(outcome, Correction):
                name = self._slides.find_patch(slide, center)
                if not (self._root / name).is_file():
                    self._slides.cut(name, slide)
                if name not in self._patches:
                    self._store.add_patches([name])
                    self._read_patches()
                if name not in self._list_answered():
                    self._write_tables(name)
                event = Event(DONE, self._patches[name], answer, 0, asked.time)
                outcome = self._store_event(asked, event)
        assert isinstance(outcome, Correction)
        return outcome

    def undo(self, asked: Asked, slide: str) -> Undone | None:
        """Takes back a person's last answer on a slide, then the one before, and so on.

        Args:
          asked: who, and when.
          slide: its name.

        Returns:
          What was taken back; None if there is nothing more.

        Raises:
          InputError: an impossible key.
        """
        check_key(asked.key)
        with self._lock:
            person = self._people.get(asked.person)
            if person is None:
                return None
            outcome = self._find_outcome(asked)
            if outcome is None:
                patch = self._replays[person].find_last(self._list_numbers(slide))
                if patch is None:
                    return None
                outcome = self._store_event(asked, Event(UNDO, patch, "", 0, asked.time))
                name = self._by_number[patch]
                if name not in self._list_answered():
                    self._write_tables()
                    (self._root / name).unlink(missing_ok=True)
        return outcome if isinstance(outcome, Undone) else None

    def list_of_slide(self, slide: str) -> list[Correction]:
        """Lists the corrections of all people on a slide, in the order in which they were given."""
        with self._lock:
            found = [
                self._describe(person, replay.answers[patch])
                for patch in self._list_numbers(slide)
                for person, replay in self._replays.items()
                if patch in replay.answers
            ]
        return sorted(found, key=lambda each: (each.time, each.number))

    def find_split(self, slide: SlideFile) -> str:
        """Finds in which split a slide is: corrections of "val" and "test" are not trained on."""
        with self._lock:
            return self._slides.find_split(slide)

    def _read_people(self) -> None:
        for person in self._store.list_people():
            self._people[person.name] = person.number
            self._names[person.number] = person.name
            self._replays.setdefault(person.number, Replay())

    def _read_patches(self) -> None:
        names = self._store.list_patches()
        self._patches = {name: number for name, number in names.items() if find_slide(name)}
        self._by_number = {number: name for name, number in self._patches.items()}
        known = self._slides.record.slides
        if unknown := {slide for slide in map(find_slide, self._patches) if slide not in known}:
            raise InputError(
                f"{self._root / correction_folder.RECORD} lacks {min(unknown)}, of which "
                f"{self._store.path} has corrections: restore it from a copy"
            )

    def _find_person(self, name: str) -> int:
        """Finds the number of a person, who is added at the first answer."""
        if name not in self._people:
            self._store.add_people([name], ANNOTATOR)
            self._read_people()
            self._save_settings()
        return self._people[name]

    def _save_settings(self) -> None:
        """Lets the export count, for each patch, the answers of those who gave one."""
        people = [each.name for each in self._store.list_people() if each.role == ANNOTATOR]
        settings = project.Settings(tuple(people), 0.0, 0, 0.0, "unanimous")
        self._store.save_settings(settings._asdict())

    def _find_outcome(self, asked: Asked) -> Correction | Undone | None:
        return self._outcomes.get((self._people.get(asked.person, 0), asked.key))

    def _store_event(self, asked: Asked, event: Event) -> Correction | Undone | None:
        person = self._find_person(asked.person)
        self._store.add_events(person, [(asked.key, event)])
        outcome = self._outcomes[person, asked.key] = self._take(person, event)
        return outcome

    def _take(self, person: int, event: Event) -> Correction | Undone | None:
        """Takes an event for true; returns what it says, or takes back, of a place on a slide."""
        replay = self._replays[person]
        undone = replay.take(event)
        said = undone or event
        if said.patch not in self._by_number or said.kind != DONE or not said.value:
            return None
        if undone is None:
            return self._describe(person, event)
        now = replay.answers.get(undone.patch)
        return Undone(self._describe(person, undone), now and self._describe(person, now))

    def _describe(self, person: int, event: Event) -> Correction:
        slide, left, top = get_place(self._by_number[event.patch])
        field = self._slides.record.field
        across, down = (
            field.size * field.mpp / mpp for mpp in self._slides.record.slides[slide].slide_mpp
        )
        return Correction(
            *(event.patch, slide, left + across / 2, top + down / 2, across),
            *(event.value, self._names[person], event.time),
        )

    def _list_numbers(self, slide: str) -> set[int]:
        return {number for name, number in self._patches.items() if find_slide(name) == slide}

    def _list_answered(self) -> set[str]:
        """Lists the patches of which somebody's answer holds."""
        numbers = {patch for replay in self._replays.values() for patch in replay.answers}
        return {self._by_number[number] for number in numbers & self._by_number.keys()}

    def _write_tables(self, *further: str) -> None:
        names = self._list_answered() | set(further)
        there = [name for name in names if (self._root / name).is_file()]
        correction_folder.write_tables(self._root, self._slides.record, there)
