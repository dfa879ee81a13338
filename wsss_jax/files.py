"""Atomic writing of files and folders, locks, and checks of paths before long work."""

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

from wsss_jax.errors import Busy, InputError

UNFINISHED = ".unfinished."  # prefix of files and folders until they are complete
LOCK = ".lock"  # usual name of a lock file
_NO_LOCKS = errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK  # from file systems without locks
_FOLDER_LOCK = f"{UNFINISHED}lock"  # of a folder that is being made; no user has such a file
_SHARED_WAIT = 0.5  # seconds: the last holder of a shared lock takes it alone for a moment
_PAUSE = 0.01  # seconds between two attempts


def check_writable(folder: Path | str) -> None:
    """Refuses, before long work, a folder that cannot be made or written to.

    Raises:
      InputError: names the folder or file that prevents it.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        if existing.is_symlink():
            raise InputError(
                f"{existing}: a link to {os.readlink(existing)}, which does not exist: remove "
                "it, or make that folder"
            )
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "not writable" if existing.is_dir() else "a file, not a folder"
        raise InputError(f"{existing} is {what}: choose another folder")


def check_regular(path: Path | str) -> None:
    """Refuses all but regular files; opening a named pipe would wait forever.

    Raises:
      InputError: no such file, or a folder, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; correct the path or restore it") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{str(path)!r}: not a valid file name; correct the path") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(mode), "a device")
        raise InputError(f"{path}: {what}, not a file; remove it or choose another")


def check_utf8(path: Path | str) -> None:
    """Refuses a folder of a run whose name Orbax cannot handle.

    Raises:
      InputError: a part of its absolute path is not UTF-8.
    """
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}: the folder of a run needs a name in UTF-8; rename {absolute!r}, or "
            "choose another"
        ) from error


def clear_unfinished(folder: Path) -> None:
    """Removes what killed processes left unfinished in a folder and all folders in it.

    Not what is being written, nor what lies in a folder in which another process works.
    """
    for path in list(find_unfinished(folder)):
        if not (path / _FOLDER_LOCK).is_file():
            remove(path)
            continue
        with suppress(InputError), hold_lock(path / _FOLDER_LOCK):  # InputError: being written
            remove(path)


def find_unfinished(folder: Path) -> Iterator[Path]:
    """Finds what is unfinished, as for `clear_unfinished`, whether it is being written or not."""
    for parent, folders, names in os.walk(folder):
        path = Path(parent)
        if path != folder and any(_is_held(path / name) for name in names if _is_lock(name)):
            folders.clear()  # another process works there
            continue
        yield from (path / name for name in (*folders, *names) if name.startswith(UNFINISHED))
        folders[:] = [name for name in folders if not name.startswith(UNFINISHED)]


def _is_lock(name: str) -> bool:
    return name.startswith(".") and name.endswith(LOCK)


def _is_held(path: Path) -> bool:
    """Whether a process has a lock, or may have it; one that was killed has left its file."""
    if not path.is_file():  # released meanwhile, or no lock
        return False
    try:
        with path.open("rb") as file:
            return _try_lock(file, fcntl.LOCK_SH) is not True
    except FileNotFoundError:
        return False
    except PermissionError:  # of another user
        return True


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def measure_size(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; 0 if there is none."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def hold_lock(path: Path, *, shared: bool = False, wait: float = 0.0) -> Iterator[bool]:
    """Holds a lock while the block runs; the end of the process releases it too.

    The file is made and then removed, with the folders made for it if they are empty. On a file
    system without locks, nothing is held.

    Args:
      path: of the lock file.
      shared: other processes may share the lock, but none can have it alone.
      wait: seconds to wait for other processes at most.

    Yields:
      Whether the lock is held.

    Raises:
      Busy: another process holds it.
      InputError: `path` is not a file.
    """
    folder = path.parent
    new_folders = [each for each in (folder, *folder.parents) if not each.exists()]
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + (max(wait, _SHARED_WAIT) if shared else wait)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with _open_lock(path) as file:
            held = _try_lock(file, kind)
            if held is False and time.monotonic() < deadline:
                time.sleep(_PAUSE)
                continue
            if held is False:
                raise Busy(f"another process works in {folder}: wait until it ends, or stop it")
            if held and not _is_same_file(file, path):
                continue  # its last holder has removed it
            try:
                yield bool(held)
            finally:
                if held and _try_lock(file, fcntl.LOCK_EX):  # no other process shares it
                    _remove_lock(path, new_folders)
            return


def _open_lock(path: Path) -> BinaryIO:
    try:
        return path.open("a+b")
    except io.UnsupportedOperation as error:
        raise InputError(f"{path}: a named pipe or a device, not a file; remove it") from error


def _try_lock(file: BinaryIO, kind: int) -> bool | None:
    """Takes a lock if it is free; returns whether it did, or None without locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_lock(path: Path, folders: Iterable[Path]) -> None:
    path.unlink(missing_ok=True)  # its folder may have been renamed
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
    """Yields a new folder beside `path` that replaces it when the block succeeds.

    If the block raises, the new folder is removed and `path` stays as it was. An earlier `path` may
    hold only hidden files; they are kept, as are its mode and owner. What a killed process left is
    removed first.

    Raises:
      InputError: as of `check_replaceable`, or another process is making the folder.
    """
    check_replaceable(path)
    path = Path(path).resolve()  # a link stays; its target is replaced
    # Always the same name, to find what a killed process left; short, as `path` may not be.
    temporary = path.parent / f"{UNFINISHED}{zlib.crc32(os.fsencode(path.name)):08x}"
    with hold_lock(temporary / _FOLDER_LOCK):
        _move_hidden(temporary, path)
        for leftover in temporary.iterdir():
            if leftover.name != _FOLDER_LOCK:
                remove(leftover)
        try:
            yield temporary
            check_empty(path)
            if path.exists():
                _copy_attributes(path, temporary)
                clear_unfinished(path)
                _move_hidden(path, temporary)
            (temporary / _FOLDER_LOCK).unlink(missing_ok=True)
            temporary.rename(path)  # replaces an empty folder
        except BaseException:
            _move_hidden(temporary, path)
            shutil.rmtree(temporary)
            raise


def _move_hidden(source: Path, target: Path) -> None:
    """Moves hidden files of the user, but not unfinished ones."""
    for path in list(source.iterdir()):
        if path.name.startswith(".") and not path.name.startswith(UNFINISHED):
            target.mkdir(exist_ok=True)
            path.rename(target / path.name)


def _copy_attributes(source: Path, target: Path) -> None:
    shutil.copystat(source, target)
    status = source.stat()
    with suppress(PermissionError):  # the user may not be in that group
        os.chown(target, -1, status.st_gid)
    with suppress(PermissionError):  # only root may change the owner
        os.chown(target, status.st_uid, -1)


def check_replaceable(path: Path | str) -> None:
    """Refuses, before long work, a folder that `atomic_folder` cannot replace.

    Raises:
      InputError: as of `check_empty`; or it is the current folder, the root of a file system, or
        one that this user may not remove or write beside.
    """
    check_empty(path)
    resolved = Path(path).resolve()
    check_writable(resolved.parent)
    if not resolved.exists():
        return
    check_writable(resolved)
    if resolved == Path.cwd():
        raise InputError(f"{path}: the current folder; choose a new one")
    with tempfile.NamedTemporaryFile(dir=resolved, prefix=UNFINISHED):  # prevents the removal
        try:
            resolved.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                what = "a mount point" if error.errno == errno.EBUSY else error.strerror
                raise InputError(
                    f"{path}: cannot be replaced ({what}); choose a new folder in it"
                ) from error


def check_empty(path: Path | str) -> None:
    """Refuses a file, and a folder with anything but hidden files; `path` may be missing.

    Raises:
      InputError: names the file.
    """
    path = Path(path)
    if path.is_dir():
        for name in sorted(os.listdir(path)):
            if not name.startswith("."):
                raise InputError(
                    f"{path}: exists and is not an empty folder, {name} is in it; remove it or "
                    "choose another"
                )
    elif os.path.lexists(path):
        raise InputError(f"{path}: exists and is not a folder; remove it or choose another")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` when the block succeeds.

    Makes the parent folders; keeps the name, from whose suffix some writers read the format. If the
    block raises, the temporary file is removed and an earlier `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)
