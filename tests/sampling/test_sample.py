"""The job that cuts patches out of slides, end to end."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from data import patch_files
from tests.sampling.short_sample import (
    MPP,
    PATCH,
    SIZE,
    draw_slide,
    list_files,
    make_config,
    read_rows,
    write_slide,
)
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.sampling import slide_sample, tables
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.reading.view import View

REPOSITORY = Path(__file__).parents[2]
REAL = REPOSITORY.parent / "shared" / "data" / "slides"


def test_patches_are_what_the_slide_shows_there(slide, sampled):
    rows = read_rows(sampled)
    assert len(rows) == 24 and sum(row.kept for row in rows.values()) > 15
    with open_slide(slide) as opened:
        view = View(opened, 1.0)
        for name, row in rows.items():
            assert name == f"a_x{row.left:05d}_y{row.top:05d}"
            assert (row.slide, row.patient, row.split) == ("a", "a", "train")
            assert row.size0 == PATCH / MPP and row.mpp == 1.0
            assert row.patch.startswith("patches/a/" if row.kept else "dropped/a/")
            expected = view.read(row.left // 2, row.top // 2, PATCH, PATCH)
            image = patch_files.read_image(sampled / row.patch, PATCH)
            np.testing.assert_array_equal(image, expected)


def test_files(sampled):
    rows = read_rows(sampled)
    files = {path for path in list_files(sampled) if not path.endswith(".png")}
    assert files == {
        *("patches.csv", "slides.csv", "slides/a/sample.json", "slides/a/kept.geojson")
    }
    pictures = {path for path in list_files(sampled) if path.startswith(("patches/", "dropped/"))}
    assert pictures == {row.patch for row in rows.values()}
    assert (sampled / "slides/a/kept.png").stat().st_size > 1000
    (row,) = tables.read_slides(sampled / "slides.csv")
    assert row.mpp0 == row.mpp0_down == MPP and row.error == "" and row.patches == 24
    assert row.kept == sum(each.kept for each in rows.values())


def test_the_squares_are_those_of_the_kept_patches(sampled):
    collection = json.loads((sampled / "slides/a/kept.geojson").read_text())
    kept = {name: row for name, row in read_rows(sampled).items() if row.kept}
    squares = {each["properties"]["name"]: each for each in collection["features"]}
    assert squares.keys() == kept.keys()
    assert len({each["id"] for each in squares.values()}) == len(kept)
    for name, row in kept.items():
        properties = squares[name]["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["measurements"]["white"] == pytest.approx(row.measures["white"], 1e-4)
        assert "sharpness_z" in properties["measurements"]
        polygon = shapely.geometry.shape(squares[name]["geometry"])
        assert polygon.exterior.is_ccw and polygon.is_valid
        side = PATCH / MPP
        assert polygon.bounds == (row.left, row.top, row.left + side, row.top + side)


def test_other_slides_change_no_patches(slide, sampled, tmp_path):
    """Nor does the name of the file: a second slide with the same name changes that of folders."""
    write_slide(tmp_path / "b.svs", draw_slide(1))
    (tmp_path / "again").mkdir()
    shutil.copy(slide, tmp_path / "again" / "b.svs")
    out = tmp_path / "out"
    jobs.run(make_config(f"{tmp_path / 'b.svs'},{slide},{tmp_path / 'again'}", out), out)
    rows = list(read_rows(out).values())
    places = {
        name: [(row.left, row.top, row.kept) for row in rows if row.slide == name]
        for name in {row.slide for row in rows}
    }
    assert len(places) == 3
    expected = [(row.left, row.top, row.kept) for row in read_rows(sampled).values()]
    assert places["a"] == places["again_b.svs"] == expected
    assert [places[name] == expected for name in places].count(False) == 1


def test_a_finished_slide_stays_as_it_is(slide, sampled, tmp_path, capsys):
    out = tmp_path / "mine"
    shutil.copytree(sampled, out)
    before = list_files(out)
    jobs.run(make_config(slide, out), out)
    assert "a: finished before" in capsys.readouterr().out
    assert list_files(out) == before


def test_other_thresholds_read_no_pixel_of_the_slide(slide, sampled, tmp_path, monkeypatch):
    out, anew = tmp_path / "mine", tmp_path / "anew"
    shutil.copytree(sampled, out)
    white = {"quality.max_white": 0.05}

    def refuse(*_):
        raise AssertionError("the slide is read")

    with monkeypatch.context() as patch:
        patch.setattr(View, "read_alone", refuse)
        patch.setattr(View, "read_overview", refuse)
        jobs.run(make_config(slide, out, **white), out)
    rows = read_rows(out)
    dropped = [row for row in rows.values() if row.reason.startswith("white")]
    assert dropped and all(row.patch.startswith("dropped/a/") for row in dropped)
    assert (out / "slides/a/dropped_white.png").is_file()
    jobs.run(make_config(slide, anew, **white), anew)
    assert list_files(out) == list_files(anew)
    jobs.run(make_config(slide, out), out)
    assert list_files(out) == list_files(sampled)


def test_measures_of_a_later_version_are_added(slide, sampled, tmp_path, monkeypatch):
    out, path = tmp_path / "mine", tmp_path / "mine" / "slides/a/sample.json"
    shutil.copytree(sampled, out)
    summary = json.loads(path.read_text())
    del summary["measures"]["dark"]
    path.write_text(json.dumps(summary))
    write_slide(tmp_path / "b.svs", draw_slide(1))
    jobs.run(make_config(tmp_path / "b.svs", out), out)
    assert all(
        math.isnan(row.measures["dark"]) == (row.slide == "a") for row in read_rows(out).values()
    )
    monkeypatch.setattr(View, "read_alone", None)  # the patches are there
    jobs.run(make_config(slide, out), out)
    assert not any(math.isnan(row.measures["dark"]) for row in read_rows(out).values())
    assert (out / "slides/a/sample.json").read_bytes() == (
        sampled / "slides/a/sample.json"
    ).read_bytes()


def test_a_patch_is_taken_back_or_dropped_by_hand(slide, sampled, tmp_path, capsys):
    out = tmp_path / "mine"
    shutil.copytree(sampled, out)
    strict = make_config(slide, out, **{"quality.max_white": 0.05})
    jobs.run(strict, out)
    rows = read_rows(out)
    back = next(name for name, row in rows.items() if not row.kept)
    gone = next(name for name, row in rows.items() if row.kept)
    (out / "keep.csv").write_text(f"patch,keep\n{rows[back].patch},1\n{gone},0\nnone_x1_y1,1\n")
    jobs.run(strict, out)
    assert "keep.csv: lines that fit none of the patches: none_x1_y1\n" in capsys.readouterr().out
    after = read_rows(out)
    assert after[back].kept and after[back].reason == f"kept by hand + {rows[back].reason}"
    assert not after[gone].kept and after[gone].reason == "by hand"
    assert (out / after[back].patch).is_file() and not (out / rows[back].patch).exists()
    assert (out / "dropped/a" / f"{gone}.png").is_file()
    assert (out / "slides/a/dropped_by_hand.png").is_file()


def test_other_settings_of_a_finished_slide_are_refused(slide, sampled, tmp_path):
    out = tmp_path / "mine"
    shutil.copytree(sampled, out)
    before = list_files(out)
    for fields in ({"size": 72}, {"seed": 1}, {"mpp": 0.5}, {"tissue.closing": 9.0}):
        (name,) = fields
        with pytest.raises(InputError, match=rf"of other settings \({name.split('.')[0]}\): set"):
            jobs.run(make_config(slide, out, **fields), out)
    shutil.copy(write_slide(tmp_path / "b.svs", draw_slide(1)), tmp_path / "a.svs")
    with pytest.raises(InputError, match=r"of a slide of other content \(slide\)"):
        jobs.run(make_config(tmp_path / "a.svs", out), out)
    after = list_files(out)
    assert "of other content" in after.pop("slides.csv").decode()
    del before["slides.csv"]
    assert after == before
    (out / "slides/a/sample.json").unlink()
    with pytest.raises(InputError, match=r"but no .*sample\.json: remove .*, or name another --c"):
        jobs.run(make_config(slide, out), out)


def test_a_grid_and_a_resolution_that_is_no_whole_number(slide, tmp_path):
    out = tmp_path / "grid"
    jobs.run(make_config(slide, out, layout="grid", max_overlap=0.0, mpp=0.7), out)
    rows = list(read_rows(out).values())
    side = PATCH * 0.7 / MPP
    assert len(rows) > 20 and rows[0].size0 == pytest.approx(side)
    for row in rows:
        assert (row.left / side + 0.01) % 1 < 0.02 and (row.top / side + 0.01) % 1 < 0.02


def test_bad_patches_are_dropped_for_the_right_reason(tmp_path):
    """A slide with a pen mark, a blurred part, a dark fold, and a part that is scanned twice."""
    image = draw_slide()
    left, top = 300, 250  # all tissue around here
    cv2.circle(image, (left + 64, top + 64), 40, (40, 150, 130), -1)
    image[top + 200 : top + 400, left : left + 250] = cv2.GaussianBlur(
        image[top + 200 : top + 400, left : left + 250], (0, 0), 4
    )
    image[top : top + 50, left + 200 : left + 330] //= 5
    image[500:628, 640:768] = image[372:500, 640:768]
    slide = write_slide(tmp_path / "a.svs", image)
    config = make_config(slide, tmp_path / "out", layout="grid", max_overlap=0.5)
    jobs.run(config, tmp_path / "out")
    rows = read_rows(tmp_path / "out").values()

    def find(x, y):
        """Reasons of the patches around a point."""
        inside = [r for r in rows if 30 < x - r.left < 98 and 30 < y - r.top < 98]
        assert inside
        return [row.reason for row in inside]

    assert all("pen" in reason for reason in find(left + 64, top + 64))
    assert all("blurred" in reason for reason in find(left + 125, top + 300))
    assert all("dark" in reason for reason in find(left + 265, top + 25))
    good = [row for row in rows if row.left > 680 and row.left < 800 and 200 < row.top < 300]
    assert good and all(row.kept for row in good)


def test_a_part_that_was_scanned_twice_is_a_duplicate(tmp_path):
    image = draw_slide()
    image[384:512, 512:640] = image[256:384, 512:640]
    slide = write_slide(tmp_path / "a.svs", image)
    out = tmp_path / "out"
    jobs.run(make_config(slide, out, layout="grid", max_overlap=0.0), out)
    reasons = {(row.left, row.top): row.reason for row in read_rows(out).values()}
    assert reasons[512, 256] == "" and reasons[512, 384] == "duplicate"


def test_patients_are_in_one_split(slide, tmp_path):
    for name in ("b", "c", "d", "e"):
        write_slide(tmp_path / f"{name}.svs", draw_slide(ord(name)))
    (tmp_path / "p.csv").write_text(
        "slide,patient,split\nb,P1,test\nc,P1,test\nd,P2,\ne,P3,\nf,P4,\n"
    )
    out = tmp_path / "out"
    config = make_config(tmp_path, out, patients=str(tmp_path / "p.csv"), count=4)
    jobs.run(config, out)
    rows = {row.slide: row for row in tables.read_slides(out / "slides.csv")}
    assert [rows[name].patient for name in "bcde"] == ["P1", "P1", "P2", "P3"]
    assert rows["b"].split == rows["c"].split == "test"
    for row in read_rows(out).values():
        assert (row.patient, row.split) == (rows[row.slide].patient, rows[row.slide].split)
    # Without the table, and with another slide: slides of earlier starts keep patient and split.
    jobs.run(make_config(slide, out, count=4), out)
    later = {row.slide: row for row in tables.read_slides(out / "slides.csv")}
    assert {name: later[name] for name in "bcde"} == rows and later["a"].patient == "a"


def test_bad_slides_do_not_stop_the_others(slide, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    content = slide.read_bytes()
    for name in ("good", "later"):
        (folder / f"{name}.svs").write_bytes(content)
    (folder / "cut.svs").write_bytes(content[: len(content) // 2])
    (folder / "empty.svs").write_bytes(b"")
    (folder / "text.svs").write_text("no slide at all\n" * 100)
    (folder / "\u202eodd.svs").write_bytes(content)
    write_slide(folder / "without.svs", draw_slide(), mpp=None)
    write_slide(folder / "coarse.svs", draw_slide(), mpp=2.5)
    glass = np.full((*SIZE[::-1], 3), 244, np.uint8)
    write_slide(folder / "glass.svs", glass)
    write_slide(folder / "small.svs", draw_slide()[300:400, 300:400])
    words = {
        "coarse": "its 2.5 micrometers per pixel are over twice the 1 at which it is to be read",
        "cut": "copy the slide again",
        "empty": "an empty file; copy the slide again",
        "glass": "no tissue found; look at the slide",
        "small": "no patch of 64 x 64 pixels at 1 micrometers per pixel has its center on tissue",
        "text": "not a slide of a known format",
        "without": "set --config.slide_mpp=0.25",
        "\u202eodd": "its name cannot begin those of patches",
    }
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=rf"^{len(words)} of {len(words) + 2} slides failed"
    ) as error:
        jobs.run(make_config(folder / "*", out), out)
    assert "\n" not in str(error.value)
    rows = {row.slide: row for row in tables.read_slides(out / "slides.csv")}
    assert {name for name, row in rows.items() if row.error} == words.keys()
    for name, text in words.items():
        assert text in rows[name].error and rows[name].patches == 0
    assert rows["good"].kept == rows["later"].kept > 0
    assert {path.name for path in (out / "patches").iterdir()} == {"good", "later"}
    with pytest.raises(InputError, match=rf"^1 of 1 slides failed, listed in .*: {folder}/text"):
        jobs.run(make_config(folder / "text.svs", out), out)
    # The user says what the metadata does not.
    jobs.run(make_config(folder / "without.svs", out, slide_mpp=MPP), out)
    rows = {row.slide: row for row in tables.read_slides(out / "slides.csv")}
    assert rows["without"].error == "" and rows["without"].patches == 24 and rows["text"].error


def test_wrong_fields_are_refused_before_any_work(slide, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"config\.shares is .*: train, val and test must sum"):
        make_config(slide, out, shares=(0.5, 0.1, 0.1))
    with pytest.raises(InputError, match=r"config\.mpp is 0\.0: it must be a number over 0"):
        make_config(slide, out, mpp=0.0)
    with pytest.raises(InputError, match=r"there is no folder .*masks; name one with masks"):
        jobs.run(make_config(slide, out, **{"tissue.source": str(tmp_path / "masks")}), out)
    with pytest.raises(InputError, match=r"config\.patients: no line for .*a\.svs; add one"):
        (tmp_path / "p.csv").write_text("slide,patient\nb,P\n")
        jobs.run(make_config(slide, out, patients=str(tmp_path / "p.csv")), out)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"such as thesis\.txt: name another --config\.out"):
        jobs.run(make_config(slide, out), out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_patches_are_not_taken_for_slides(sampled):
    with pytest.raises(InputError, match="names only results of this program"):
        jobs.run(make_config(sampled / "patches" / "*" / "*.png", sampled), sampled)
    with pytest.raises(InputError, match="names only results of this program"):
        jobs.run(make_config(sampled / "**" / "*.png", sampled), sampled)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared data")
def test_a_real_slide(tmp_path):
    """Ink marks the margins of this skin; the patches with much of it are dropped."""
    out = tmp_path / "out"
    config = make_config(REAL / "cmu-1-small-region.svs", out, count=800, size=224)
    config.tissue.min_tissue = 50_000.0
    jobs.run(config, out)
    rows = read_rows(out).values()
    assert 15 < len(rows) < 40 and 0.6 < np.mean([row.kept for row in rows]) < 1
    assert {row.reason for row in rows} == {"", "pen"}


def test_patches_lie_in_the_scanned_area(slide, tmp_path, monkeypatch):
    """Its corner is where viewers begin to count."""
    real, bounds = slide_sample.open_slide, (301, 203, 500, 400)

    def open_part(*arguments):
        return dataclasses.replace(real(*arguments), bounds=bounds)

    monkeypatch.setattr(slide_sample, "open_slide", open_part)
    out = tmp_path / "out"
    jobs.run(make_config(slide, out), out)
    rows = read_rows(out)
    assert 3 < len(rows) < 24
    for row in rows.values():
        assert row.left >= 301 and row.left + row.size0 <= 801
        assert row.top >= 203 and row.top + row.size0 <= 603
    collection = json.loads((out / "slides/a/kept.geojson").read_text())
    for feature in collection["features"]:
        row = rows[feature["properties"]["name"]]
        corner = feature["geometry"]["coordinates"][0][0]
        assert corner == [row.left - 301, row.top - 203]


def test_masks_say_where_tissue_is(slide, tmp_path):
    out, masks = tmp_path / "out", tmp_path / "masks"
    config = make_config(slide, out, **{"tissue.source": str(masks)})
    masks.mkdir()
    with pytest.raises(InputError, match=r"there is no tissue mask .*a\.png; add it"):
        jobs.run(config, out)
    mask = np.zeros((3, 4), np.uint8)
    mask[:, 2:] = 255
    cv2.imwrite(str(masks / "a.png"), mask)
    jobs.run(config, out)
    rows = read_rows(out).values()
    assert rows and all(row.left + row.size0 / 2 >= SIZE[0] / 2 for row in rows)
