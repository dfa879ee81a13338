"""Corrections of maps that were interrupted: what is completed, removed, or cut again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labels.correction_tools import (
    ORIGIN,
    Pathologist,
    draw_slide,
    export,
    list_pictures,
)
from wsss_jax.labels import correction_folder
from wsss_jax.labels.corrections import open_corrections
from wsss_jax.labels.store import Store
from wsss_jax.sampling import tables


class Killed(BaseException):
    """The end of the process."""


def kill_at(patch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool = False) -> None:
    original = getattr(owner, name)

    def die(*args, **kwargs):
        if after:
            original(*args, **kwargs)
        raise Killed

    patch.setattr(owner, name, die)


STEPS = [
    (correction_folder, "write_record"),
    (correction_folder, "write_picture"),
    (Store, "add_patches"),
    (correction_folder, "write_tables"),
    (Store, "add_people"),
    (Store, "add_events"),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("owner", "name"), STEPS)
def test_what_was_cut_off_is_completed_or_removed(slide, tmp_path, root, owner, name, after):
    """The process ends at each step of a correction, of a new person on a new slide."""
    other = draw_slide(tmp_path / "slides", "b", seed=1)
    with open_corrections(root, ORIGIN) as opened:
        Pathologist(opened).answer(slide, 100, 100)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, owner, name, after=after)
            Pathologist(opened, "Bob").answer(other, 250, 250, "0001")
    is_stored = name == "add_events" and after
    check_whole(root, [slide, other], 1 + is_stored)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(Store, "add_events"), (correction_folder, "write_tables"), (Path, "unlink")],
)
def test_an_undo_that_was_cut_off_is_completed_or_removed(slide, root, owner, name, after):
    with open_corrections(root, ORIGIN) as opened:
        ann = Pathologist(opened)
        ann.answer(slide, 100, 100)
        ann.answer(slide, 250, 250, "0001")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, owner, name, after=after)
            ann.undo(slide)
    check_whole(root, [slide], 2 if (name, after) == ("add_events", False) else 1)


def check_whole(root, slides, count):
    """Opened again, the folder has so many corrections, each with its picture, row and label."""
    with open_corrections(root, ORIGIN) as opened:
        found = [each for slide in slides for each in opened.list_of_slide(slide.name)]
        assert len(found) == count
        rows = {row.patch for row in tables.read_patches(root / tables.PATCHES)}
        assert list_pictures(root) == rows and len(rows) == count
        assert len(export(root)) == count
    assert not list(root.rglob(".unfinished*"))


def test_a_killed_process_loses_nothing_that_was_answered(slide, root):
    """It answers without end; each line that it printed is an answer that must be there."""
    code = f"""
import itertools
from pathlib import Path
from tests.labels.correction_tools import ORIGIN, Pathologist
from wsss_jax.labels.corrections import open_corrections
from wsss_jax.slides.reading.catalog import SlideFile
with open_corrections(Path({str(root)!r}), ORIGIN) as opened:
    ann = Pathologist(opened)
    slide = SlideFile(Path({str(slide.path)!r}), "a", None)
    for number in itertools.count():
        found = ann.answer(slide, 70 + 13 * number % 260, 70 + 29 * number % 260)
        print(found.number, flush=True)
        if number % 5 == 4:
            print(-ann.undo(slide).undone.number, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(16)]
    process.send_signal(signal.SIGKILL)
    said += map(int, process.stdout.read().split())
    process.wait()
    held: dict[int, None] = {}
    for number in said:
        if number > 0:
            held[number] = None
        else:
            del held[-number]
    with open_corrections(root, ORIGIN) as opened:
        there = {each.number for each in opened.list_of_slide("a")}
        # The one under way may be there, or taken back, too.
        assert len(there ^ held.keys()) <= 1
        rows = {row.patch for row in tables.read_patches(root / tables.PATCHES)}
        assert list_pictures(root) == rows and len(rows) == len(there)


def test_a_picture_that_is_gone_is_cut_again(slide, root, capsys):
    with open_corrections(root, ORIGIN) as opened:
        Pathologist(opened).answer(slide, 101, 133)
    (picture,) = (root / "patches").rglob("*.png")
    content = picture.read_bytes()
    picture.unlink()
    with open_corrections(root, ORIGIN):
        assert picture.read_bytes() == content
    picture.unlink()
    slide.path.unlink()
    with open_corrections(root, ORIGIN) as opened:
        assert len(opened.list_of_slide("a")) == 1
        assert not tables.read_patches(root / tables.PATCHES)
    assert f"{picture} is gone, and is not cut again: {slide.path}" in capsys.readouterr().out
