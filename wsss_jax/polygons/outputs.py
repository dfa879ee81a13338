"""What the job has written, so that nothing else is overwritten: no corrections above all."""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.folders import fold_name
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

WRITTEN = "written.json"

Write = Callable[[str, Callable[[Path], object]], None]


class Outputs:
    """The files that a job writes into its workdir, and of which source each is.

    A file is replaced only if it is of the same source and as this job wrote it.
    """

    def __init__(self, workdir: Path):
        """Reads what earlier starts wrote.

        Raises:
          InputError: the list of it is damaged.
        """
        self._workdir, self._path = workdir, workdir / WRITTEN
        self._written: dict[str, dict[str, str]] = {}  # name -> its source, its checksum
        self._names: dict[str, Path] = {}  # folded name -> the source of this start
        if self._path.is_file():
            try:
                self._written = json.loads(self._path.read_bytes())
                _ = [each["source"] + each["crc32"] for each in self._written.values()]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(
                    f"{self._path}: damaged ({error}); name another --workdir"
                ) from error

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
        before = {name for name, each in self._written.items() if each["source"] == key}
        for name in sorted(before):
            path = self._workdir / name
            if path.exists() and not _is_file(path, self._written[name]["crc32"]):
                raise InputError(
                    f"{path} was changed since it was written; move it away to have it written "
                    "again, or name another --workdir"
                )
        written: set[str] = set()

        def write(name: str, save: Callable[[Path], object]) -> None:
            other = self._names.setdefault(fold_name(name), source)
            if other != source or name in written:
                raise InputError(f"{source}: {name} is also written of {other}; rename one")
            path = self._workdir / name
            with atomic_path(path) as temporary:
                save(temporary)
                checksum = _compute_checksum(temporary)
                # A start that was killed has not listed its last files; the same bytes are those.
                owner = self._written.get(name, {}).get("source")
                is_own = owner == key or (owner is None and _is_file(path, checksum))
                if path.exists() and not is_own:
                    raise InputError(
                        f"{path} is there already, of {owner or 'something else'}; move it away or "
                        "name another --workdir"
                    )
            self._written[name] = {"source": key, "crc32": checksum}
            written.add(name)

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
                del self._written[name]

    def save(self) -> None:
        """Writes the list of what was written."""
        with atomic_path(self._path) as temporary:
            text = json.dumps(dict(sorted(self._written.items())), indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")


def _is_file(path: Path, checksum: str) -> bool:
    return path.is_file() and _compute_checksum(path) == checksum


def _compute_checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"
