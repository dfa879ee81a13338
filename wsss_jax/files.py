"""Writing a file so that it is either whole or absent, and by one process at a time."""

import errno
import fcntl
import os
import secrets
import shutil
import stat
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


def check_regular(path: Path | str) -> None:
    """Refuses what is no regular file: opening a named pipe waits for ever.

    Raises:
      InputError: no such file, or a folder, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; correct the path or restore it") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{str(path)!r}: no file can be called so; correct the path") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(mode), "a device")
        raise InputError(f"{path}: {what}, not a file; remove it or name another")


# What the names of files begin with until they are whole.
UNFINISHED = ".unfinished."


def clear_unfinished(folder: Path) -> None:
    """Removes from a folder what a killed process was about to write."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


_NO_LOCKS = errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK  # of some shared file systems


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of the file `path`, made if need be; it ends with the process at the latest.

    Where the file system knows no locks, nothing is held.

    Raises:
      InputError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process works in {path.parent}: wait until it ends, or stop it"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    Parents are created; the suffix is kept, for writers that read the format from it. If the block
    raises, the temporary file is removed and an earlier `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a new folder beside `path` that takes its place when the block ends well.

    Parents are created. If the block raises, the temporary folder is removed.

    Raises:
      InputError: something is in `path` already.
    """
    path = Path(path)
    check_empty(path)
    temporary = path.parent / f"{UNFINISHED}{os.getpid()}.{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        check_empty(path)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_empty(path: Path | str) -> None:
    """Refuses a folder with something in it, and a file; one that does not exist is fine.

    Raises:
      InputError: names what is there.
    """
    path = Path(path)
    if path.is_dir():
        for entry in path.iterdir():
            raise InputError(
                f"{path}: exists and is not an empty folder, {entry.name} is in it; remove it or "
                "name another"
            )
    elif path.exists() or path.is_symlink():
        raise InputError(f"{path}: exists and is no folder; remove it or name another")
