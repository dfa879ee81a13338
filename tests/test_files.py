import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wsss_jax.errors import InputError
from wsss_jax.files import (
    LOCK,
    UNFINISHED,
    atomic_folder,
    atomic_path,
    check_writable,
    clear_unfinished,
    hold_lock,
)

REPOSITORY = Path(__file__).parents[1]


def test_creates_parents_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "scores.json"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_failure_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("earlier")

    def fail_halfway():
        with atomic_path(path) as temporary:
            temporary.write_text("hal")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_halfway()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_possible_names(tmp_path):
    for name in (255 * "n", 240 * "n" + ".json"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("whole")
        with atomic_folder(tmp_path / "folders" / name) as temporary:
            (temporary / "a").write_text("whole")
        assert (tmp_path / name).read_text() == "whole"
        assert [path.name for path in (tmp_path / "folders" / name).iterdir()] == ["a"]


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path):
    path = tmp_path / "runs" / "run" / LOCK
    with hold_lock(path):
        for shared in (False, True):
            with (
                pytest.raises(InputError, match=r"another process works in .*/run: wait until"),
                hold_lock(path, shared=shared),
            ):
                pass
        (path.parent / "result").touch()
    assert os.listdir(path.parent) == ["result"]
    (path.parent / "result").unlink()
    with hold_lock(path), pytest.raises(InputError, match="another process"), hold_lock(path):
        pass
    assert path.parent.is_dir()  # it was there before
    with hold_lock(tmp_path / "new" / "folder" / LOCK):
        pass
    assert not (tmp_path / "new").exists()


def test_a_shared_lock_prevents_an_exclusive_one(tmp_path):
    path = tmp_path / LOCK
    with hold_lock(path, shared=True):
        with hold_lock(path, shared=True):
            pass
        with pytest.raises(InputError, match="another process"), hold_lock(path):
            pass
    with hold_lock(path):
        pass
    assert not os.listdir(tmp_path)


def test_a_folder_is_complete_or_absent(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / ".hidden").write_text("kept")
    with atomic_folder(path) as temporary:
        (temporary / "patch").touch()
        with pytest.raises(InputError, match="another process"), atomic_folder(path):
            pass
        assert os.listdir(path) == [".hidden"]
    assert sorted(os.listdir(path)) == [".hidden", "patch"] and os.listdir(tmp_path) == ["out"]
    with pytest.raises(InputError, match="not an empty folder, patch is in it"):
        _fill(path)
    with pytest.raises(RuntimeError, match="disk full"):
        _fill(tmp_path / "other")
    assert os.listdir(tmp_path) == ["out"]


def _fill(path):
    with atomic_folder(path) as temporary:
        (temporary / "patch").touch()
        raise RuntimeError("disk full")


def test_the_rest_of_a_killed_process_is_removed(tmp_path):
    script = """
import os, sys
from wsss_jax.files import atomic_folder
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "half").mkdir()
    (temporary / ".notes").write_text("theirs")  # moved at the end
    os._exit(0)  # no `finally`, as when it is killed
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "out"], cwd=REPOSITORY, check=True)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(UNFINISHED)
    with atomic_folder(tmp_path / "out") as temporary:
        assert not (temporary / "half").exists()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == [".notes"]


def test_hidden_files_mode_and_group_of_an_earlier_folder_are_kept(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    path.chmod(0o2770)
    for name in (LOCK, ".notes"):
        (path / name).write_text("theirs")
    with atomic_folder(path) as temporary:
        (temporary / "patch").touch()
    assert path.stat().st_mode & 0o7777 == 0o2770
    assert sorted(os.listdir(path)) == [LOCK, ".notes", "patch"]
    assert (path / LOCK).read_text() == "theirs"


def test_hidden_files_survive_an_error_at_the_end(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    (path / ".notes").write_text("theirs")

    def fail(source, target):
        if source.name.startswith(UNFINISHED):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.rename(source, target)

    def make():
        with atomic_folder(path) as temporary:
            (temporary / "patch").touch()

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        make()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["out"] and (path / ".notes").read_text() == "theirs"


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()

    def refuse():
        with atomic_folder(path):
            raise AssertionError("the work has begun")

    with monkeypatch.context() as patch:
        patch.chdir(path)
        with pytest.raises(InputError, match="out: the current folder; choose a new one"):
            refuse()

    def rmdir(folder):  # as the kernel does, without asking what is in it
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "rmdir", rmdir)
    with pytest.raises(
        InputError, match=r"out: cannot be replaced \(a mount point\); choose a new"
    ):
        refuse()
    assert os.listdir(tmp_path) == ["out"] and not os.listdir(path)


def test_what_another_process_is_writing_is_not_cleared(tmp_path):
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "patch").touch()
        (tmp_path / f"{UNFINISHED}left").mkdir()
        clear_unfinished(tmp_path)
        assert os.listdir(tmp_path) == [temporary.name]
    assert os.listdir(tmp_path / "out") == ["patch"]


def test_what_was_left_in_folders_below_is_cleared_but_not_where_another_works(tmp_path):
    held, released = tmp_path / "held" / "run", tmp_path / "released" / "run"
    left = [folder / "pictures" / f"{UNFINISHED}x" for folder in (tmp_path, held, released)]
    for path in left:
        path.mkdir(parents=True)
    (released / LOCK).touch()  # as a killed process leaves it
    with hold_lock(held / LOCK), hold_lock(tmp_path / LOCK):
        clear_unfinished(tmp_path)
        assert [path.exists() for path in left] == [False, True, False]
    clear_unfinished(tmp_path)
    assert not left[1].exists()


def test_pipes_and_broken_links_are_named(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(InputError, match=r"\.lock: a named pipe or a device, .*; remove it"):
        hold_lock(tmp_path / LOCK).__enter__()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="link: a link to nowhere, which does not exist"):
        check_writable(tmp_path / "link" / "run")


def test_a_shared_lock_waits_for_a_holder_that_releases_it(tmp_path):
    """Who releases it takes it alone for a moment, to check whether it may remove the file."""
    path = tmp_path / LOCK
    with path.open("a+b") as file, hold_lock(path, shared=True) as held:
        assert held
    path.touch()
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        leaving = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        leaving.start()
        with hold_lock(path, shared=True):
            pass
        leaving.join()


def test_waiting_for_a_lock(tmp_path):
    path = tmp_path / LOCK
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        leaving = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        leaving.start()
        with hold_lock(path, wait=10):
            pass
        leaving.join()
