import pytest

from wsss_jax.files import atomic_path


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
