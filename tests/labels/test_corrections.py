"""Corrections of maps: patches, answers, undo, the export, and what is refused."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from configs import base_slides
from data.patch_files import read_image
from tests.labels.correction_tools import (
    FIELD,
    ORIGIN,
    REAL,
    SIZE,
    Pathologist,
    draw_slide,
    export,
    list_answers,
    list_pictures,
)
from wsss_jax import jobs
from wsss_jax.errors import Busy, InputError
from wsss_jax.labels import correction_folder
from wsss_jax.labels.correction_splits import TrainingSlides, place_slide, read_training_slides
from wsss_jax.labels.corrections import Asked, open_corrections
from wsss_jax.sampling import tables
from wsss_jax.sampling.splits import Patient
from wsss_jax.slides.reading.catalog import SlideFile


def sample(slide: Path, out: Path) -> list[tables.PatchRow]:
    config = base_slides.sample(str(slide), str(out))
    config.size, config.count, config.mpp = SIZE, 8, FIELD.mpp
    config.shares, config.quality.min_sharpness = (1.0, 0.0, 0.0), -10.0
    config.tissue.min_tissue = 1000.0
    jobs.run(config, out.parent / "job")
    return [row for row in tables.read_patches(out / tables.PATCHES) if row.kept]


@pytest.mark.parametrize("mpp", [0.5, 0.37, 1.0, 1.6])
def test_patches_are_those_that_sampling_cuts(tmp_path, root, opened, mpp):
    slide = draw_slide(tmp_path / "slides", "b", mpp)
    check_places(slide, sample(slide.path, tmp_path / "sampled"), root, opened, exact=mpp <= 1)


def test_patches_of_a_real_slide_are_those_that_sampling_cuts(tmp_path, root, opened):
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not there")
    slide = SlideFile(REAL, REAL.stem, None)
    check_places(slide, sample(REAL, tmp_path / "sampled"), root, opened, exact=True)


def check_places(slide, rows, root, opened, *, exact):
    """Centers of sampled patches give the same patches, and those of corrections themselves."""
    ann = Pathologist(opened)
    assert len(rows) >= 3
    for row in rows:
        half = row.size0 / 2
        given = ann.answer(slide, row.left + half, row.top + half)
        again = ann.answer(slide, given.x, given.y, "0100")
        assert again.number == given.number
        assert given.size == pytest.approx(row.size0, rel=1e-4)  # tables have five digits
    made = {row.patch: row for row in tables.read_patches(root / tables.PATCHES)}
    assert {row.patch for row in rows} == made.keys()
    for row in rows:
        same = made[row.patch]
        assert (same.left, same.top, same.mpp) == (row.left, row.top, row.mpp)
        if exact:  # a coarser slide has several patches that share the name of their level-0 pixel
            sampled = root.parent / "sampled" / row.patch
            assert (root / row.patch).read_bytes() == sampled.read_bytes()
        assert read_image(root / row.patch, SIZE).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(("x", "y", "left", "top"), [(-50, 2, 0, 0), (399, 1e6, 272, 272)])
def test_patches_are_moved_inside_the_slide(slide, root, opened, x, y, left, top):
    found = Pathologist(opened).answer(slide, x, y)
    assert (found.x, found.y, found.size) == (left + 64, top + 64, 128)
    (row,) = tables.read_patches(root / tables.PATCHES)
    assert (row.left, row.top, row.patch) == (
        left,
        top,
        f"patches/a/a_x{left:05d}_y{top:05d}.png",
    )


def test_a_slide_smaller_than_a_patch_is_refused(tmp_path, root, opened):
    with pytest.raises(InputError, match="no room for a patch of 64 pixels"):
        Pathologist(opened).answer(draw_slide(tmp_path, "small", mpp=0.1), 50, 50)
    assert not list_pictures(root) and not opened.list_of_slide("small")


def test_the_last_answer_counts_and_undo_goes_back_one_by_one(slide, root, opened):
    ann, bob = Pathologist(opened), Pathologist(opened, "Bob")
    first = ann.answer(slide, 100, 100)
    ann.answer(slide, 250, 100, "0011")
    changed = ann.answer(slide, 100, 100, "?")
    assert changed.number == first.number and first.answer == "1000"
    assert list_answers(opened, slide) == [("Ann", "0011"), ("Ann", "?")]
    bob.answer(slide, 100, 100, "0001")
    assert len(list_pictures(root)) == 2
    gone = ann.undo(slide)
    assert (gone.undone.answer, gone.now.answer) == ("?", "1000")
    gone = ann.undo(slide)
    assert (gone.undone.answer, gone.now) == ("0011", None)
    assert len(list_pictures(root)) == 1
    gone = ann.undo(slide)
    assert gone.undone == first and gone.now is None
    assert ann.undo(slide) is None
    assert list_answers(opened, slide) == [("Bob", "0001")]
    assert len(list_pictures(root)) == len(tables.read_patches(root / tables.PATCHES)) == 1
    assert bob.undo(slide).undone.answer == "0001"
    assert not list_pictures(root) and not tables.read_patches(root / tables.PATCHES)
    assert bob.answer(slide, 100, 100).number == first.number
    assert list_answers(opened, slide) == [("Bob", "1000")]


def test_undo_is_of_one_slide(tmp_path, slide, opened):
    other, ann = draw_slide(tmp_path / "slides", "b", seed=1), Pathologist(opened)
    ann.answer(slide, 100, 100, "0001")
    ann.answer(other, 100, 100, "0010")
    assert ann.undo(slide).undone.slide == "a"
    assert ann.undo(slide) is None
    assert list_answers(opened, other) == [("Ann", "0010")]
    assert Pathologist(opened, "Nobody").undo(other) is None


def test_what_is_sent_twice_counts_once(slide, root, opened):
    asked = Asked("Ann", "k", 1)
    first = opened.take(asked, slide, (100, 100), "1000")
    assert opened.take(asked, slide, (250, 250), "0001") == first
    assert len(list_pictures(root)) == 1
    opened.take(Asked("Ann", "l", 2), slide, (250, 250), "0001")
    gone = opened.undo(Asked("Ann", "m", 3), "a")
    assert opened.undo(Asked("Ann", "m", 3), "a") == gone
    assert list_answers(opened, slide) == [("Ann", "1000")]
    # Keys are a person's own.
    assert opened.take(Asked("Bob", "k", 4), slide, (250, 250), "0001").person == "Bob"


def test_keys_are_known_after_a_start(slide, root):
    with open_corrections(root, ORIGIN) as opened:
        first = opened.take(Asked("Ann", "k", 1), slide, (100, 100), "1000")
        opened.take(Asked("Ann", "l", 2), slide, (100, 100), "0100")
        gone = opened.undo(Asked("Ann", "m", 3), "a")
    with open_corrections(root, ORIGIN) as opened:
        assert opened.take(Asked("Ann", "k", 9), slide, (1, 1), "0001") == first
        assert opened.undo(Asked("Ann", "m", 9), "a") == gone
        assert list_answers(opened, slide) == [("Ann", "1000")]


@pytest.mark.parametrize("answer", ["", "100", "10000", "1002", "??", "<b>", "10 0"])
def test_other_answers_are_refused(slide, root, opened, answer):
    with pytest.raises(InputError, match="no answer for 4 classes"):
        Pathologist(opened).answer(slide, 100, 100, answer)
    with pytest.raises(InputError, match="a key of"):
        opened.take(Asked("Ann", "k" * 65, 1), slide, (1, 1), "1000")
    assert not list_pictures(root)


def test_the_export_is_that_of_labels(slide, root):
    with open_corrections(root, ORIGIN) as opened:
        ann, bob = Pathologist(opened), Pathologist(opened, "Bob")
        ann.answer(slide, 100, 100, "1010")
        bob.answer(slide, 300, 100, "0001")
        ann.answer(slide, 300, 300, "?")
        ann.answer(slide, 100, 300, "1000")
        bob.answer(slide, 100, 300, "0100")
        rows = export(root)  # while it is open
        assert {row["how"] for row in rows.values()} == {
            "unanimous",
            "cannot tell",
            "disagreement",
        }
        names = {path.name for path in (root / "labeled" / "train").iterdir()}
        assert names == {"a_x00036_y00036-[1 0 1 0].png", "a_x00236_y00036-[0 0 0 1].png"}
        assert {row["random"] for row in rows.values()} == {"0"}
        bob.undo(slide)
        ann.undo(slide)
        ann.undo(slide)
        ann.answer(slide, 300, 100, "0001")
        assert len(export(root)) == 2
        bob.undo(slide)
        bob.answer(slide, 300, 290, "0001")
        ann.undo(slide)
        assert len(export(root)) == 2  # what is taken back is not trained on any more
        names = {path.name for path in (root / "labeled" / "train").iterdir()}
        assert names == {"a_x00036_y00036-[1 0 1 0].png", "a_x00236_y00226-[0 0 0 1].png"}
        other = root / "labeled" / "train" / "mine-[1 0 1 0].png"
        other.touch()
        with pytest.raises(InputError, match=r"mine.* was not written by an export"):
            export(root)
        other.unlink()
    description = json.loads((root / "labeled" / "dataset.json").read_text())
    assert description["mpp"] == 1.0 and len(description["classes"]) == 4


def test_slides_for_validation_and_test_are_not_trained_on(tmp_path, root):
    """By the sampled folder, by names of test patches, by TCGA barcode, by the user."""
    names = ("a", "b", "TCGA-AA-1234-01Z", "TCGA-AA-9999-01Z", "e", "new")
    slides = [draw_slide(tmp_path / "slides", name, seed=n) for n, name in enumerate(names)]
    data = tmp_path / "mine" / "labeled"
    for split, stem in (
        ("test", "b_x00010_y00020"),
        ("val", "TCGA-AA-1234-01A_x00000_y00000"),
        ("undrawn/test", "TCGA-AA-9999-01A_x00000_y00000"),
    ):
        (data / split / "img").mkdir(parents=True)
        (data / split / "img" / f"{stem}.png").touch()
    tables.write_slides(
        tmp_path / "mine" / tables.SLIDES,
        [tables.SlideRow("a", "/x/a.svs", "p", "val", 0.5, 0.5, 1, 1, "", "")],
    )
    training = read_training_slides(data)
    given = {"e.svs": Patient("q", "test")}
    with open_corrections(root, ORIGIN._replace(training=training), given) as opened:
        ann = Pathologist(opened)
        for slide in slides:
            ann.answer(slide, 100, 100)
        assert opened.find_split(slides[1]) == "test"
    splits = {row.slide: row.split for row in tables.read_slides(root / tables.SLIDES)}
    assert splits == dict(zip(names, ("val", "test", "val", "test", "test", "train")))
    with open_corrections(root, ORIGIN):  # the data set is not at hand any more
        pass
    export(root)
    trained = [path.name[:3] for path in (root / "labeled" / "train").iterdir()]
    assert trained == ["new"]
    assert len(list((root / "labeled" / "undrawn").rglob("*.png"))) == 5
    # A slide that was for training goes where its patient is now.
    found = TrainingSlides({"new": "n"}, {"n": "test"})
    assert place_slide(slides[5], found, {}).split == "test"
    with open_corrections(root, ORIGIN._replace(training=found)) as opened:
        assert opened.find_split(slides[5]) == "test"


def test_one_process_at_a_time(root, opened):
    with pytest.raises(Busy), open_corrections(root, ORIGIN):
        pass


def test_other_folders_and_patches_are_refused(slide, tmp_path, root):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    refused = [(tmp_path / "other", ORIGIN, "notes.txt: name another --config.corrections")]
    with open_corrections(root, ORIGIN) as opened:
        Pathologist(opened).answer(slide, 100, 100)
    finer = ORIGIN._replace(field=FIELD._replace(mpp=0.5))
    refused.append((root, finer, "64 pixels at 1 micrometers per pixel"))
    for folder, origin, text in refused:
        with pytest.raises(InputError, match=text), open_corrections(folder, origin):
            pass
    assert (root / "patches").is_dir() and len(list((tmp_path / "other").iterdir())) == 1


def test_another_slide_of_the_same_name_is_refused(slide, tmp_path, root):
    same = draw_slide(tmp_path / "elsewhere", "a")
    other = draw_slide(tmp_path / "other", "a", seed=3)
    with open_corrections(root, ORIGIN) as opened:
        ann = Pathologist(opened)
        ann.answer(slide, 100, 100)
        with pytest.raises(InputError, match="a slide of other content"):
            ann.answer(other, 100, 100)
        with pytest.raises(InputError, match=r"at 0\.5 micrometers per pixel, now it has 0\.7"):
            ann.answer(slide._replace(mpp=0.7), 100, 100)
        assert ann.answer(same, 100, 100, "0001").answer == "0001"  # moved, not another
        assert len(opened.list_of_slide("a")) == 1
    with open_corrections(root, ORIGIN):
        assert tables.read_slides(root / tables.SLIDES)[0].file == str(same.path)


HOSTILE = ("<script>alert(1)</script>", "=1+1", "a'b\"c", "Ä ß 中", "a_x00000_y00000", "$(rm -r x)")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_do_nothing(slide, root, name):
    """A slash cannot be in the name of a file; as that of a slide it is refused below."""
    named = slide._replace(name=name.replace("/", "_"))
    with open_corrections(root, ORIGIN) as opened:
        Pathologist(opened, name).answer(named, 100, 100)
    with open_corrections(root, ORIGIN) as opened:
        assert list_answers(opened, named) == [(name, "1000")]
    (row,) = tables.read_patches(root / tables.PATCHES)
    assert row.slide == named.name and len(export(root)) == 1


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "", "x" * 200, "a\nb", ".."])
def test_names_that_lead_elsewhere_are_refused(slide, root, opened, name):
    with pytest.raises(InputError):
        Pathologist(opened).answer(slide._replace(name=name), 100, 100)
    assert not list_pictures(root.parent)


def test_damaged_files_are_named(slide, root):
    with open_corrections(root, ORIGIN) as opened:
        Pathologist(opened).answer(slide, 100, 100)
    record = root / correction_folder.RECORD
    whole = record.read_text()
    for text in ("{", "{}", '{"field": {"size": 1}, "slides": {}}', '{"field": [], "slides": []}'):
        record.write_text(text)
        with pytest.raises(InputError, match=r"corrections\.json"), open_corrections(root, ORIGIN):
            pass
    record.write_text(json.dumps({**json.loads(whole), "slides": {}}))
    with pytest.raises(InputError, match="lacks a, of which"), open_corrections(root, ORIGIN):
        pass
    record.write_text(whole)
    for table in (tables.PATCHES, tables.SLIDES):
        (root / table).unlink()
    with open_corrections(root, ORIGIN):
        assert len(tables.read_patches(root / tables.PATCHES)) == 1
    shutil.copy(root / "labels.sqlite", root / "copy")
    with sqlite3.connect(root / "copy") as copy:
        assert copy.execute("select count(*) from events").fetchone() == (1,)
