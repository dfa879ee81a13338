import fcntl
import os
import threading

import pytest

from wsss_jax.errors import InputError
from wsss_jax.files import LOCK, UNFINISHED, atomic_folder, atomic_path, locked


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


def test_names_may_be_as_long_as_names_can_be(tmp_path):
    for name in (255 * "n", 240 * "n" + ".json"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("whole")
        with atomic_folder(tmp_path / "folders" / name) as temporary:
            (temporary / "a").write_text("whole")
        assert (tmp_path / name).read_text() == "whole"
        assert [path.name for path in (tmp_path / "folders" / name).iterdir()] == ["a"]


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path):
    path = tmp_path / "runs" / "run" / LOCK
    with locked(path):
        for shared in (False, True):
            with (
                pytest.raises(InputError, match=r"another process works in .*/run: wait until"),
                locked(path, shared=shared),
            ):
                pass
        (path.parent / "result").touch()
    assert os.listdir(path.parent) == ["result"]
    (path.parent / "result").unlink()
    with locked(path), pytest.raises(InputError, match="another process"), locked(path):
        pass
    assert path.parent.is_dir()  # it was there before
    with locked(tmp_path / "new" / "folder" / LOCK):
        pass
    assert not (tmp_path / "new").exists()


def test_a_shared_lock_keeps_out_those_who_want_it_alone(tmp_path):
    path = tmp_path / LOCK
    with locked(path, shared=True):
        with locked(path, shared=True):
            pass
        with pytest.raises(InputError, match="another process"), locked(path):
            pass
    with locked(path):
        pass
    assert not os.listdir(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
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


def test_what_a_killed_process_left_of_a_folder_is_removed(tmp_path):
    if not os.fork():
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "half").mkdir()
            os._exit(0)  # no `finally`, as when it is killed
    os.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(UNFINISHED)
    with atomic_folder(tmp_path / "out") as temporary:
        assert not (temporary / "half").exists()
    assert os.listdir(tmp_path) == ["out"] and not os.listdir(tmp_path / "out")


def test_who_shares_a_lock_waits_for_one_that_leaves_it(tmp_path):
    """A leaver holds it alone for a moment, to see whether it may remove the file."""
    path = tmp_path / LOCK
    with path.open("a+b") as file, locked(path, shared=True) as held:
        assert held
    path.touch()
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        leaving = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        leaving.start()
        with locked(path, shared=True):
            pass
        leaving.join()


def test_a_lock_may_be_waited_for(tmp_path):
    path = tmp_path / LOCK
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        leaving = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        leaving.start()
        with locked(path, wait=10):
            pass
        leaving.join()
