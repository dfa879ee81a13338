"""What the job has written, so that nothing else is overwritten: no corrections above all."""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from data.folders import fold_name
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

WRITTEN = "written.jsonl"

Write = Callable[[str, Callable[[Path], object]], None]


class Outputs:
    """The files that a job writes into its workdir, and of which source each is.

    A file is replaced only if it is of the same source and as this job wrote it. The list of them
    has a line for each file, added before the file is there: a job that is killed at any moment
    knows afterwards what is its own.
    """

    def __init__(self, workdir: Path):
        """Reads what earlier starts wrote."""
        self._workdir, self._path = workdir, workdir / WRITTEN
        self._written: dict[str, str] = {}  # name -> its source
        self._checksums: dict[str, set[str]] = {}  # of all that was written under a name
        self._names: dict[str, Path] = {}  # folded name -> the source of this start
        if self._path.is_file():
            for line in self._path.read_bytes().splitlines():
                self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        try:
            name, source, checksum = map(str, json.loads(line))
        except (ValueError, TypeError):
            return  # cut short by a kill: the file was not written
        self._written[name] = source
        self._checksums.setdefault(name, set()).add(checksum)

    def _is_own(self, name: str) -> bool:
        """Whether a file is as this job wrote it."""
        path = self._workdir / name
        return path.is_file() and _compute_checksum(path) in self._checksums.get(name, ())

    @contextmanager
    def replace(self, source: Path) -> Iterator[Write]:
        """Replaces what there is of a source: by all that the block writes, or by nothing.

        Args:
          source: what the files are made from.

        Yields:
          A function that writes a file: its name in the workdir, and a function that saves it at
          the path it is given.

        Raises:
          InputError: a file was changed since this job wrote it, or is of another source.
        """
        key = os.path.abspath(source)
        before = {name for name, owner in self._written.items() if owner == key}
        for name in sorted(before):
            path = self._workdir / name
            if path.exists() and not self._is_own(name):
                raise InputError(
                    f"{path} was changed since it was written; move it away to have it written "
                    "again, or name another --workdir"
                )
        written: set[str] = set()

        def write(name: str, save: Callable[[Path], object]) -> None:
            other = self._names.setdefault(fold_name(name), source)
            if other != source:
                raise InputError(f"{source}: {name} is also written of {other}; rename one")
            if name in written:
                raise InputError(
                    f"{source}: {name} would be written twice; move one of two regions that begin "
                    "at the same corner, or remove it"
                )
            path = self._workdir / name
            if path.exists() and name not in before:
                owner = self._written.get(name, "something else")
                raise InputError(
                    f"{path} is there already, of {owner}; move it away or name another --workdir"
                )
            with atomic_path(path) as temporary:
                save(temporary)
                checksum = _compute_checksum(temporary)
                self._read_line(line := json.dumps([name, key, checksum]).encode())
                with self._path.open("ab") as file:
                    file.write(b"\n" + line + b"\n")
                written.add(name)
            self._checksums[name] = {checksum}

        stale = before
        try:
            yield write
            stale = before - written
        except BaseException:
            stale = before | written
            raise
        finally:
            for name in stale:
                (self._workdir / name).unlink(missing_ok=True)
                del self._written[name], self._checksums[name]

    def save(self) -> None:
        """Writes the list anew, without the lines that no longer hold."""
        with atomic_path(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for name, source in sorted(self._written.items()):
                for checksum in sorted(self._checksums[name]):
                    file.write(json.dumps([name, source, checksum]) + "\n")


def _compute_checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def write_failures(path: Path, failures: Mapping[Path, str]) -> None:
    """Writes a line for each file that failed, atomically; without any, removes an earlier list."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        lines = [f"{' '.join(error.split())}\n" for error in failures.values()]
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
