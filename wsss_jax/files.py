"""Writing a file so that it is either whole or absent."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsss_jax.errors import InputError


def check_writable(folder: Path | str) -> None:
    """Refuses, before long work, a folder that could not be made or written to.

    Raises:
      InputError: names what is in the way.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "not writable" if existing.is_dir() else "a file, not a folder"
        raise InputError(f"{existing} is {what}: name another folder")


# What the names of files begin with until they are whole.
UNFINISHED = ".unfinished."


def clear_unfinished(folder: Path) -> None:
    """Removes from a folder what a killed process was about to write."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    Parents are created; the suffix is kept, for writers that read the format from it. If the block
    raises, the temporary file is removed and an earlier `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{UNFINISHED}{path.name}.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)
