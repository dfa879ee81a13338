"""The database of labels, and what follows from the events in it."""

import random
import sqlite3
import subprocess
import sys
import time

import pytest

from wsss_jax.errors import InputError
from wsss_jax.labels import order
from wsss_jax.labels.consensus import Consensus, decide
from wsss_jax.labels.desk import Dealing, Desk, parse_event
from wsss_jax.labels.replay import CANNOT_TELL, DONE, SET, UNDO, Event, Replay
from wsss_jax.labels.store import ANNOTATOR, CHIEF, TAKEN_IN, open_store

CLASSES = ("tumor", "stroma", "other")
NAMES = [f"patches/p{number}.png" for number in range(12)]


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "labels.sqlite", CLASSES) as store:
        store.add_people(["Ann", "Bob"], ANNOTATOR)
        store.add_people(["Eve"], CHIEF)
        store.add_patches(NAMES)
        yield store


def seat(store, dealing=None):
    desk = Desk(store, NAMES, ["Ann", "Bob"], dealing or Dealing())
    return desk, {person.name: person for person in desk.people.values()}


def test_undo_takes_back_one_event_after_the_other():
    replay = Replay()
    for event in (
        Event(SET, 1, "0=1"),
        Event(SET, 1, "2=1"),
        Event(SET, 1, "0=0"),
        Event(DONE, 1, "001"),
        Event(DONE, 2, CANNOT_TELL),
    ):
        assert replay.take(event) is None
    assert [event.value for event in replay.answers.values()] == ["001", CANNOT_TELL]
    seen = []
    for _ in range(5):
        undone = replay.take(Event(UNDO, 0))
        seen.append((undone.kind, undone.patch, replay.draft(1), list(replay.answers)))
    assert seen == [
        (DONE, 2, {0: 0, 1: 0, 2: 1}, [1]),
        (DONE, 1, {0: 0, 2: 1}, []),
        (SET, 1, {0: 1, 2: 1}, []),
        (SET, 1, {0: 1}, []),
        (SET, 1, {}, []),
    ]
    assert replay.take(Event(UNDO, 0)) is None


def test_an_answer_can_be_given_again_and_taken_back():
    replay = Replay([Event(DONE, 1, "100"), Event(DONE, 2, "010"), Event(DONE, 1, "111")])
    assert {patch: event.value for patch, event in replay.answers.items()} == {2: "010", 1: "111"}
    replay.take(Event(UNDO, 0))
    assert {patch: event.value for patch, event in replay.answers.items()} == {2: "010", 1: "100"}


@pytest.mark.parametrize("seed", range(5))
def test_any_events_leave_what_a_plain_stack_leaves(seed):
    dice, stack, replay = random.Random(seed), [], Replay()
    for _ in range(300):
        patch = dice.randrange(1, 5)
        event = dice.choice(
            [Event(SET, patch, f"{dice.randrange(3)}=1"), Event(DONE, patch, "010"), Event(UNDO, 0)]
        )
        expected = None
        if event.kind != UNDO:
            stack.append(event)
        elif stack:
            expected = stack.pop()
        assert replay.take(event) is expected or event.kind != UNDO
        assert replay.answers == {e.patch: e for e in stack if e.kind == DONE}


def test_what_is_stored_is_there_after_a_restart(store):
    desk, people = seat(store)
    ann = people["Ann"]
    first, second = desk.list_next(ann.number, 2)
    desk.take(ann, "a", Event(SET, first, "1=1", 0, 5))
    desk.take(ann, "b", Event(DONE, first, "010", 700, 6))
    desk.take(ann, "c", Event(SET, second, "0=1", 0, 7))
    again, _ = seat(store)
    assert again.list_next(ann.number, 1) == [second]
    assert again.draft(ann.number, second) == {0: 1}
    assert again.answers(ann.number) == {first: Event(DONE, first, "010", 700, 6)}
    assert again.measure_progress(ann.number) == (1, len(NAMES), 0.7)
    again.take(ann, "u1", Event(UNDO, 0))
    again.take(ann, "u2", Event(UNDO, 0))
    again.take(ann, "b2", Event(DONE, first, "010", 100, 8))  # a correction takes time, too
    assert again.measure_progress(ann.number).seconds == pytest.approx(0.8)
    again.take(ann, "u3", Event(UNDO, 0))
    again.take(ann, "b3", Event(DONE, first, "010", 0, 9))
    again.take(ann, "c3", Event(SET, second, "0=1", 0, 7))
    for key in ("d", "e"):
        assert again.take(ann, key, Event(UNDO, 0)).patch in (first, second)
    assert again.list_next(ann.number, 1) == [first]


def test_an_event_that_is_sent_twice_counts_once(store):
    desk, people = seat(store)
    ann = people["Ann"]
    first, second = desk.list_next(ann.number, 2)
    for patch in (first, second):
        for _ in range(2):
            desk.take(ann, f"key{patch}", Event(DONE, patch, "100"))
    assert len(list(store.list_events())) == 2
    for _ in range(3):
        desk.take(ann, "undo", Event(UNDO, 0))
    assert list(desk.answers(ann.number)) == [first]


def test_people_do_not_see_each_other(store):
    desk, people = seat(store)
    ann, bob = people["Ann"], people["Bob"]
    mine, theirs = (desk.list_next(person.number, 99) for person in (ann, bob))
    assert sorted(mine) == sorted(theirs) and mine != theirs
    desk.take(ann, "a", Event(DONE, mine[0], "100"))
    assert not desk.answers(bob.number) and desk.draft(bob.number, mine[0]) == {}
    assert desk.list_next(bob.number, 99) == theirs


def test_patches_are_dealt_by_a_share():
    names, people = [f"p{i}" for i in range(4000)], ["a", "b", "c"]
    for overlap in (0.0, 0.25, 1.0):
        dealt = [order.deal_patch(name, people, overlap, 3) for name in names]
        shared = sum(len(each) == 3 for each in dealt) / len(names)
        assert shared == pytest.approx(overlap, abs=0.03)
        for person in people:
            alone = sum(each == (person,) for each in dealt) / len(names)
            assert alone == pytest.approx((1 - overlap) / 3, abs=0.03)
    fewer = [order.deal_patch(name, people, 0.25, 3) for name in names[::7]]
    assert fewer == [order.deal_patch(name, people, 0.25, 3) for name in names][::7]


def test_the_order_is_a_persons_own_and_keeps_when_patches_come():
    names = [f"p{i}" for i in range(200)]
    ann, bob = (order.sort_patches(names, person, 0) for person in ("Ann", "Bob"))
    assert sorted(ann) == sorted(bob) == sorted(names) and ann != bob
    assert [n for n in order.sort_patches([*names, "new"], "Ann", 0) if n != "new"] == ann
    assert order.sort_patches(names, "Ann", 1) != ann


def test_urgent_patches_come_first_beside_a_random_sample():
    names = [f"p{i:04}" for i in range(2000)]
    priority = {name: float(index) for index, name in enumerate(names)}
    assert order.sort_patches(names, "Ann", 0, priority, 0.0) == names[::-1]
    found = order.sort_patches(names, "Ann", 0, priority, 0.3)
    assert sorted(found) == names
    shown = found[:400]
    sample = [name for name in shown if order.is_random(name, 0.3, 0)]
    others = [name for name in shown if not order.is_random(name, 0.3, 0)]
    assert len(sample) / len(shown) == pytest.approx(0.3, abs=0.06)
    assert others == sorted(others, reverse=True) and min(others) > "p1500"
    # Rare classes are not rarer in the sample for coming first among the others.
    ranks = [priority[name] for name in sample]
    assert sum(ranks) / len(ranks) == pytest.approx(1000, abs=160)


@pytest.mark.parametrize(
    ("answers", "rule", "settled", "expected"),
    [
        (["110", "110"], "unanimous", "", ((1, 1, 0), "unanimous")),
        (["110", "100"], "unanimous", "", (None, "disagreement")),
        (["110", "?"], "unanimous", "", (None, "disagreement")),
        (["?", "?"], "majority", "", (None, "cannot tell")),
        (["110", "100", "101"], "majority", "", ((1, 0, 0), "majority")),
        (["110", "100"], "majority", "", (None, "disagreement")),
        (["110", "110", "?"], "majority", "", ((1, 1, 0), "majority")),
        (["110", "?", "?"], "majority", "", (None, "disagreement")),
        ([], "majority", "", (None, "waiting")),
        (["110", "001"], "unanimous", "010", ((0, 1, 0), "settled")),
        (["110"], "majority", "?", (None, "cannot tell")),
    ],
)
def test_rules_for_the_final_label(answers, rule, settled, expected):
    by_person = {f"person{i}": answer for i, answer in enumerate(answers)}
    assert decide(by_person, tuple(by_person), rule, settled) == Consensus(*expected)
    if not settled:
        assert decide(by_person, (*by_person, "another"), rule).how == "waiting"


@pytest.mark.parametrize(
    "event",
    [
        Event("other", 1),
        Event(SET, 1, "3=1"),
        Event(SET, 1, "0=2"),
        Event(SET, 1, ""),
        Event(DONE, 1, "01"),
        Event(DONE, 1, "012"),
        Event(DONE, 1, ""),
        Event(DONE, 999, "010"),
        Event(DONE, 1, "010", -1),
        Event(DONE, 1, "010", 10**12),
        Event(UNDO, 1),
    ],
)
def test_events_that_make_no_sense_are_refused(store, event):
    desk, people = seat(store)
    with pytest.raises(InputError):
        desk.take(people["Ann"], "key", event)
    with pytest.raises(InputError, match="key"):
        desk.take(people["Ann"], "x" * 65, Event(UNDO, 0))
    assert not list(store.list_events()) and not desk.answers(people["Ann"].number)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"person": 0, "key": 1, "kind": "undo", "patch": 0, "value": "", "looked": 0}',
        b'{"person": 0, "key": "k", "kind": "undo", "patch": true, "value": "", "looked": 0}',
        b'{"person": 0, "key": "k", "kind": "undo", "patch": 1e400, "value": "", "looked": 0}',
        b'{"person": 0, "key": "k", "kind": "undo", "patch": -1, "value": "", "looked": 0}',
    ],
)
def test_what_is_no_event_is_refused(body):
    with pytest.raises(InputError):
        parse_event(body, 0)


def test_a_patch_of_one_person_stays_with_who_has_answered_it(store):
    desk, people = seat(store, Dealing(overlap=0.0))
    ann = people["Ann"]
    mine = desk.list_next(ann.number, 99)
    for patch in mine:
        desk.take(ann, f"key{patch}", Event(DONE, patch, "100"))
    store.add_people(["Cleo"], ANNOTATOR)
    for annotators in (["Ann", "Bob", "Cleo"], ["Bob", "Cleo"]):  # somebody comes, somebody leaves
        later = Desk(store, NAMES, annotators, Dealing(overlap=0.0))
        assert {patch for patch, names in later.expected.items() if names == ("Ann",)} == set(mine)
        for person in later.annotators:
            assert person.name == "Ann" or not set(mine) & set(later.list_next(person.number, 99))


def test_what_was_answered_can_be_taken_back_and_given_again(store):
    """Also a patch that is another's since."""
    desk, people = seat(store)
    ann = people["Ann"]
    patches = desk.list_next(ann.number, 99)
    for patch in patches:
        desk.take(ann, f"key{patch}", Event(DONE, patch, "100"))
    desk, _ = seat(store, Dealing(overlap=0.0))
    for patch in reversed(patches):
        assert desk.take(ann, f"undo{patch}", Event(UNDO, 0)).patch == patch
        desk.take(ann, f"again{patch}", Event(DONE, patch, "010"))
        desk.take(ann, f"back{patch}", Event(UNDO, 0))


def test_only_own_patches_can_be_answered(store):
    desk, people = seat(store, Dealing(overlap=0.0))
    (theirs, *_) = desk.list_next(people["Bob"].number, 1)
    with pytest.raises(InputError, match="is not one of Ann"):
        desk.take(people["Ann"], "key", Event(DONE, theirs, "100"))
    desk.take(people["Eve"], "key", Event(DONE, theirs, "100"))  # the chief settles all


def test_classes_may_be_corrected_until_the_first_answer(tmp_path):
    path = tmp_path / "labels.sqlite"
    for classes in (("tumor", "storma"), ("tumor", "stroma")):
        with open_store(path, classes) as store:
            assert store.list_classes() == classes


def test_a_copy_of_the_file_alone_is_a_database(tmp_path, store):
    """Of one that is open, too."""
    for number in range(30):
        store.add_events(1, [(str(number), Event(DONE, 1, "100"))])
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(store.path.read_bytes())
    with open_store(copy) as found:
        assert found.list_classes() == CLASSES
        assert len(list(found.list_events())) > 10


def test_other_files_and_classes_are_refused(tmp_path, store):
    desk, people = seat(store)
    desk.take(people["Ann"], "key", Event(DONE, 1, "100"))

    def refuse(path, classes, text):
        with pytest.raises(InputError, match=text), open_store(path, classes):
            pass

    refuse(store.path, ("tumor",), "has labels of the classes tumor, stroma, other")
    (tmp_path / "empty.sqlite").touch()
    refuse(tmp_path / "empty.sqlite", CLASSES, "is empty: take a copy")
    with pytest.raises(InputError, match="is there as annotator"):
        store.add_people(["Ann"], TAKEN_IN)
    refuse(tmp_path / "none.sqlite", (), "no such label database")
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all, but long enough to look at" * 50)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("create table mine (x)")
    before = foreign.read_bytes(), text.read_bytes()
    for path in (text, foreign):
        for classes in ((), CLASSES):
            refuse(path, classes, path.name)
    assert (foreign.read_bytes(), text.read_bytes()) == before
    newer = sqlite3.connect(store.path)
    newer.execute("pragma user_version = 99")
    newer.close()
    refuse(store.path, CLASSES, "newer version")


def test_a_killed_process_loses_nothing_that_was_stored(tmp_path):
    path = tmp_path / "labels.sqlite"
    script = f"""
from pathlib import Path
from wsss_jax.labels.replay import Event
from wsss_jax.labels.store import open_store
with open_store(Path({str(path)!r}), ("a", "b")) as store:
    store.add_people(["Ann"], "annotator")
    for number in range(10**6):
        store.add_events(1, [(str(number), Event("done", 1, "10"))])
        print(number, flush=True)
"""
    for _ in range(3):
        path.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.3)
        process.kill()
        last = int(process.communicate()[0].split()[-1])
        with open_store(path) as store:
            stored = [recorded.key for recorded in store.list_events()]
        assert stored[: last + 1] == [str(number) for number in range(last + 1)]
        assert len(stored) <= last + 2  # one may have been on its way
