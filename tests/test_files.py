import pytest

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_folder, atomic_path


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


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail_halfway():
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("hal")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("whole")
        assert list((tmp_path / "out").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "whole"


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"")
    with (
        pytest.raises(InputError, match=r"not an empty folder, \.DS_Store is in it; remove it"),
        atomic_folder(tmp_path / "out"),
    ):
        pass
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(InputError, match="file: exists and is no folder"),
        atomic_folder(tmp_path / "file"),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
