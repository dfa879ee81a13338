"""The database of labels: people, patches, and every event, in one SQLite file.

Events are added and never changed: what holds follows from them (`replay`). A file is written by
one process at a time; any number may read it.
"""

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from wsss_jax.errors import InputError
from wsss_jax.labels.replay import Event

ANNOTATOR, CHIEF, TAKEN_IN = "annotator", "chief", "taken in"
_VERSION = 1  # of the tables, in the file's user_version
_APPLICATION = 0x7773_7373  # in the file's application_id: what `file` and others tell it by
_LONGEST_KEY = 64  # characters
_CHECKPOINT = 16  # pages of 4 KiB that wait beside the file at most
_TABLES = """
create table classes (number integer primary key, name text not null unique);
create table people (
    number integer primary key, name text not null unique, role text not null,
    token text not null unique
);
create table settings (name text primary key, value text not null);
create table patches (number integer primary key, name text not null unique);
create table events (
    number integer primary key autoincrement,
    person integer not null references people,
    key text not null,
    time integer not null,
    kind text not null,
    patch integer not null,
    value text not null,
    looked integer not null,
    unique (person, key)
);
"""


class Person(NamedTuple):
    """Somebody who answers.

    Attributes:
      role: "annotator", "chief" (settles, and sees what all say), or "taken in": labels that were
        there before.
      token: a secret that opens this person's page.
    """

    number: int
    name: str
    role: str
    token: str


class Recorded(NamedTuple):
    """An event in the database, with the key that its sender gave it, and whose it is."""

    number: int
    key: str
    person: int
    event: Event


def check_key(key: str) -> None:
    """Refuses a key that a sender cannot have chosen for an event.

    Raises:
      InputError: it is empty or too long.
    """
    if not 0 < len(key) <= _LONGEST_KEY:
        raise InputError(f"a key of {len(key)} characters: give 1 to {_LONGEST_KEY}")


class Store:
    """An open database.

    Answers of different threads must not overlap: one after the other uses it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path = path
        self._connection = connection

    def list_classes(self) -> tuple[str, ...]:
        return tuple(name for (name,) in self._read("select name from classes order by number"))

    def load_settings(self) -> dict[str, Any]:
        """Loads the settings with which the patches were dealt last; empty before the first."""
        rows = self._read("select name, value from settings order by name")
        return {name: json.loads(value) for name, value in rows}

    def save_settings(self, settings: Mapping[str, Any]) -> None:
        """Keeps settings for later jobs."""
        with self._write():
            self._connection.executemany(
                "insert or replace into settings values (?, ?)",
                [(name, json.dumps(value)) for name, value in settings.items()],
            )

    def list_people(self) -> list[Person]:
        rows = self._read("select number, name, role, token from people order by number")
        return [Person(*row) for row in rows]

    def list_patches(self) -> dict[str, int]:
        """Lists all patches that were ever there: name -> number."""
        return dict(self._read("select name, number from patches order by number"))

    def list_events(self) -> Iterator[Recorded]:
        """Yields all events in their order."""
        for number, key, person, *event in self._read(
            "select number, key, person, kind, patch, value, looked, time from events "
            "order by number"
        ):
            yield Recorded(number, key, person, Event(*event))

    def add_people(self, names: Sequence[str], role: str) -> None:
        """Adds people who are not there yet.

        Raises:
          InputError: one is there in another role.
        """
        roles = {person.name: person.role for person in self.list_people()}
        for name in names:
            if name in roles and roles[name] != role:
                raise InputError(
                    f"{self.path}: {name!r} is there as {roles[name]}: give another name"
                )
        with self._write():
            self._connection.executemany(
                "insert or ignore into people (name, role, token) values (?, ?, ?)",
                [(name, role, secrets.token_urlsafe(16)) for name in names],
            )

    def add_patches(self, names: Sequence[str]) -> None:
        """Adds patches that are not there yet."""
        with self._write():
            self._connection.executemany(
                "insert or ignore into patches (name) values (?)", [(name,) for name in names]
            )

    def add_events(self, person: int, events: Sequence[tuple[str, Event]]) -> list[bool]:
        """Adds events with their keys, all or none; they are on the disk when this returns.

        Returns:
          Whether each is new: one whose key the person has used was sent again, and changes
          nothing.
        """
        with self._write():
            return [
                self._connection.execute(
                    "insert or ignore into events (key, person, kind, patch, value, looked, time) "
                    "values (?, ?, ?, ?, ?, ?, ?)",
                    (key, person, *event),
                ).rowcount
                == 1
                for key, event in events
            ]

    def _read(self, statement: str) -> list[tuple]:
        with _name_errors(self.path):
            return self._connection.execute(statement).fetchall()

    @contextmanager
    def _write(self) -> Iterator[None]:
        with _name_errors(self.path), self._connection:
            yield


@contextmanager
def open_store(path: Path, classes: Sequence[str] = ()) -> Iterator[Store]:
    """Opens the database of labels, with `classes` to write in it, else to read.

    Args:
      path: of the file; with `classes` it is made where there is none.
      classes: C names of the data set, in their order.

    Raises:
      InputError: no such file, another file, or one of other classes or a newer version.
    """
    if not classes and not path.is_file():
        raise InputError(f"{path}: no such label database; configs/label.py makes it")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not path.stat().st_size:
        raise InputError(f"{path} is empty: take a copy from before, or remove it to begin anew")
    with _name_errors(path), closing(_connect(path, write=bool(classes))) as connection:
        if not classes:
            _check(path, connection)
            yield Store(path, connection)
            return
        is_new = not connection.execute("select count(*) from sqlite_master").fetchone()[0]
        if not is_new:
            _check(path, connection)
        with suppress(PermissionError):  # that of a colleague, who let us write it
            path.chmod(0o600)  # it holds the tokens
        # Many readers beside the writer, and nothing is lost with the power either.
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        # Soon in the file itself, for those who copy that alone.
        connection.execute(f"pragma wal_autocheckpoint = {_CHECKPOINT}")
        if is_new:
            _make_tables(connection, classes)
        store = Store(path, connection)
        if not next(store.list_events(), None):
            _write_classes(connection, classes)  # they may have been misspelled
        connection.execute("pragma wal_checkpoint(truncate)")
        if store.list_classes() != tuple(classes):
            raise InputError(
                f"{path} has labels of the classes {', '.join(store.list_classes())}, the data set "
                f"has {', '.join(classes)}: name these classes in dataset.json, or, to begin anew, "
                "move the database away"
            )
        yield store


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    mode = "rwc" if write else "ro"
    # Requests are answered in several threads, one after the other.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=10, check_same_thread=False
    )


def _make_tables(connection: sqlite3.Connection, classes: Sequence[str]) -> None:
    with connection:  # all or nothing
        connection.execute("begin immediate")
        for statement in _TABLES.split(";")[:-1]:
            connection.execute(statement)
        connection.execute(f"pragma application_id = {_APPLICATION}")
        connection.execute(f"pragma user_version = {_VERSION}")


def _write_classes(connection: sqlite3.Connection, classes: Sequence[str]) -> None:
    with connection:
        connection.execute("delete from classes")
        connection.executemany("insert into classes values (?, ?)", list(enumerate(classes)))


def _check(path: Path, connection: sqlite3.Connection) -> None:
    application = connection.execute("pragma application_id").fetchone()[0]
    version = connection.execute("pragma user_version").fetchone()[0]
    if application != _APPLICATION:
        raise InputError(f"{path} is no database of labels: name another file")
    if version > _VERSION:
        raise InputError(f"{path} was written by a newer version of this program: update it")


@contextmanager
def _name_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors, which name no file, into messages that do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(f"{path}: {error}: check the disk and who may write there") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: {error}: take a copy from before, or name another") from error
