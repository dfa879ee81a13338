"""Writing a file so that it is either whole or absent, and by one process at a time."""

import errno
import fcntl
import io
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from wsss_jax.errors import InputError


def check_writable(folder: Path | str) -> None:
    """Refuses, before long work, a folder that could not be made or written to.

    Raises:
      InputError: names what is in the way.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        if existing.is_symlink():
            raise InputError(
                f"{existing}: a link that leads nowhere, to {os.readlink(existing)}: remove it, or "
                "make that folder"
            )
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


def check_utf8(path: Path | str) -> None:
    """Refuses a folder of a run that checkpoints cannot be in: Orbax wants its name as text.

    Raises:
      InputError: a part of its absolute path is not UTF-8.
    """
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}: a folder of a run needs a name in UTF-8; rename {absolute!r}, or name another"
        ) from error


# What the names of files begin with until they are whole.
UNFINISHED = ".unfinished."


def clear_unfinished(folder: Path) -> None:
    """Removes from a folder what a killed process was about to write; not what one is writing."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if not (path / _FOLDER_LOCK).is_file():
            _remove(path)
            continue
        with (
            suppress(InputError),
            hold_lock(path / _FOLDER_LOCK),
        ):  # another process writes it
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


_NO_LOCKS = errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK  # of some shared file systems
LOCK = ".lock"  # its usual name
_FOLDER_LOCK = f"{UNFINISHED}lock"  # of a folder that is being made; users have no such file
_PATIENCE = 0.5  # seconds: who leaves a shared lock has it alone for a moment
_PAUSE = 0.01  # seconds


@contextmanager
def hold_lock(path: Path, *, shared: bool = False, wait: float = 0.0) -> Iterator[bool]:
    """Holds the lock of the file `path`, made if need be; it ends with the process at the latest.

    At the end the file is removed, with the folders made for it if nothing else is in them. Where
    the file system knows no locks, nothing is held. Yields whether it is.

    Args:
      path: of the lock file.
      shared: others may share it; they keep out those who want it for themselves.
      wait: seconds to wait for others at most.

    Raises:
      InputError: another process holds it, or `path` is no file.
    """
    folder = path.parent
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    latest = time.monotonic() + (max(wait, _PATIENCE) if shared else wait)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(path) as file:
            held = _try_lock(file, kind)
            if held is False and time.monotonic() < latest:
                time.sleep(_PAUSE)
                continue
            if held is False:
                raise InputError(
                    f"another process works in {folder}: wait until it ends, or stop it"
                )
            if held and not _is_at(file, path):
                continue  # the one that held it before has removed it
            try:
                yield bool(held)
            finally:
                if held and _try_lock(file, fcntl.LOCK_EX):  # nobody shares it
                    _remove_lock(path, made)
            return


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("a+b")
    except io.UnsupportedOperation as error:
        raise InputError(f"{path}: a named pipe or a device, not a file; remove it") from error


def _try_lock(file: BinaryIO, kind: int) -> bool | None:
    """Whether the lock is held now; None where there are no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_lock(path: Path, folders: Iterable[Path]) -> None:
    path.unlink(missing_ok=True)  # its folder may have another name by now
    for folder in folders:
        with suppress(FileNotFoundError):
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a new folder beside `path` that takes its place when the block ends well.

    What a killed process has left of it is removed first. Only hidden files, which are kept, may be
    in an earlier `path`, as are its mode and owner.

    Raises:
      InputError: as of `check_replaceable`, or another process makes it.
    """
    check_replaceable(path)
    path = Path(path).resolve()  # of a link, the folder takes the place
    # One name for it, so that what is left is found again; a short one, as that of `path` may be.
    temporary = path.parent / f"{UNFINISHED}{zlib.crc32(os.fsencode(path.name)):08x}"
    with hold_lock(temporary / _FOLDER_LOCK):
        _move_hidden(temporary, path)
        for left in temporary.iterdir():
            if left.name != _FOLDER_LOCK:
                _remove(left)
        try:
            yield temporary
            check_empty(path)
            if path.exists():
                _copy_attributes(path, temporary)
                clear_unfinished(path)
                _move_hidden(path, temporary)
            (temporary / _FOLDER_LOCK).unlink(missing_ok=True)
            temporary.rename(path)  # an empty folder gives way
        except BaseException:
            _move_hidden(temporary, path)
            shutil.rmtree(temporary)
            raise


def _move_hidden(source: Path, target: Path) -> None:
    """Moves the hidden files of a user; those that are not whole are no user's."""
    for path in list(source.iterdir()):
        if path.name.startswith(".") and not path.name.startswith(UNFINISHED):
            target.mkdir(exist_ok=True)
            path.rename(target / path.name)


def _copy_attributes(source: Path, target: Path) -> None:
    shutil.copystat(source, target)
    status = source.stat()
    with suppress(PermissionError):  # a group that this user is not in stays as it was made
        os.chown(target, -1, status.st_gid)
    with suppress(PermissionError):  # only root gives folders away
        os.chown(target, status.st_uid, -1)


def check_replaceable(path: Path | str) -> None:
    """Refuses, before long work, a folder whose place another could not take.

    Raises:
      InputError: names what is in the way, as `check_empty` does; it is the current folder, the
        root of a file system, or one that this user may not remove or write beside.
    """
    check_empty(path)
    resolved = Path(path).resolve()
    check_writable(resolved.parent)
    if not resolved.exists():
        return
    check_writable(resolved)
    if resolved == Path.cwd():
        raise InputError(f"{path}: the folder this was started in; name another, which is new")
    with tempfile.NamedTemporaryFile(dir=resolved, prefix=UNFINISHED):  # so that it is not removed
        try:
            resolved.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                what = "a mount point" if error.errno == errno.EBUSY else error.strerror
                raise InputError(
                    f"{path}: cannot be replaced ({what}); name a new folder in it"
                ) from error


def check_empty(path: Path | str) -> None:
    """Refuses a folder with anything but hidden files in it, and a file; none at all is fine.

    Raises:
      InputError: names what is there.
    """
    path = Path(path)
    if path.is_dir():
        for name in sorted(os.listdir(path)):
            if not name.startswith("."):
                raise InputError(
                    f"{path}: exists and is not an empty folder, {name} is in it; remove it or "
                    "name another"
                )
    elif os.path.lexists(path):
        raise InputError(f"{path}: exists and is no folder; remove it or name another")


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
