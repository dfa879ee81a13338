"""Two maps of the same slides, compared."""

import csv
import json
import shutil

import numpy as np
import pytest
import sklearn.metrics

from data.pictures import open_picture
from tests.slides.slide_runs import (
    BY_COLOR,
    compare_maps,
    read_json,
    read_labels,
    segment_by_color,
    write_slide,
)
from wsss_jax.errors import InputError
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.map_agreement import (
    count_pairs,
    find_common_classes,
    measure_agreement,
    place_on_frame,
)
from wsss_jax.slides.outputs.label_maps import LabelMap

WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Two workdirs with maps of a slide, at other strides and resolutions."""
    root = tmp_path_factory.mktemp("maps")
    slide = write_slide(root / "s.svs")
    segment_by_color(slide, root / "a" / "s", **BY_COLOR)
    segment_by_color(slide, root / "b" / "s", **BY_COLOR, stride=24)
    segment_by_color(slide, root / "fine" / "s", **{**BY_COLOR, "mpp": 0.5})
    return root


def test_the_counts_are_those_of_the_pixels(maps, tmp_path, capsys):
    compare_maps(maps / "a", maps / "b", tmp_path / "difference")
    first, second = (read_labels(maps / name / "s") for name in "ab")
    found = read_json(tmp_path / "difference" / "comparison.json")["slides"]["s"]
    expected = sklearn.metrics.confusion_matrix(first.ravel(), second.ravel(), labels=range(5))
    np.testing.assert_array_equal(found["pixels"], expected)
    assert 0 < np.trace(expected) < expected.sum()
    inside = (first < 4) & (second < 4)
    a, b = first[inside], second[inside]
    assert found["share_equal"] == pytest.approx((a == b).mean(), abs=1e-12)
    assert found["kappa"] == pytest.approx(sklearn.metrics.cohen_kappa_score(a, b), abs=1e-12)
    for value, each in enumerate(found["classes"]):
        truth, other = (first == value).ravel(), (second == value).ravel()
        hits, either = (truth & other).sum(), (truth | other).sum()
        assert each["iou"] == (hits / either if either else None)
        assert each["dice"] == (2 * hits / (truth.sum() + other.sum()) if either else None)
        assert (each["first"], each["second"]) == (truth.sum(), other.sum())
    assert found["notes"] == ["The maps were made with other stride."]
    with (tmp_path / "difference" / "pairs.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["pixels"]) for row in rows) == first.size
    assert sum(float(row["area (mm2)"]) for row in rows) == pytest.approx(
        first.size / 1e6, abs=1e-4
    )
    with (tmp_path / "difference" / "agreement.csv").open(encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert row["slide"] == "s" and float(row["Cohen's kappa"]) == round(found["kappa"], 6)
    assert "index.html: 1 slide compared" in capsys.readouterr().out


def test_the_picture_shows_what_differs(maps, tmp_path):
    compare_maps(maps / "a", maps / "b", tmp_path / "difference")
    with open_picture(tmp_path / "difference" / "s" / "difference.png", ("PNG",)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    first, second = (read_labels(maps / name / "s") for name in "ab")
    with open_picture(maps / "a" / "s" / "thumbnail.png", ("PNG",)) as picture:
        assert picture.size == first.shape[::-1]  # so small that each pixel is there
    height, width = first.shape
    colors = np.array(
        [*read_json(maps / "a/s/slide.json")["settings"]["output"]["palette"][:4], (90, 90, 90)]
    )
    left = pixels[50 : 50 + height, 24 : 24 + width]
    right = pixels[50 : 50 + height, 36 + width : 36 + 2 * width]
    differs = first != second
    np.testing.assert_array_equal(left[differs], colors[first[differs]])
    np.testing.assert_array_equal(right[differs], colors[second[differs]])
    assert (np.ptp(left[~differs].astype(int), axis=-1) == 0).all()  # gray
    np.testing.assert_array_equal(left[~differs], right[~differs])
    page = (tmp_path / "difference" / "s" / "report.html").read_text()
    assert "other stride" in page and "Cohen's kappa" in page


def test_a_map_is_itself_in_full_agreement(maps, tmp_path):
    compare_maps(maps / "a" / "s", maps / "a" / "s", tmp_path / "difference", palette="colorblind")
    found = read_json(tmp_path / "difference" / "comparison.json")["slides"]["s"]
    assert (found["share_equal"], found["kappa"], found["notes"]) == (1.0, 1.0, [])
    assert "100.0 %" in (tmp_path / "difference" / "index.html").read_text()


def test_other_resolutions_by_the_nearest_neighbor(maps, tmp_path):
    compare_maps(maps / "a", maps / "fine", tmp_path / "down")
    compare_maps(maps / "fine", maps / "a", tmp_path / "up")
    coarse, fine = read_labels(maps / "a" / "s"), read_labels(maps / "fine" / "s")
    assert fine.shape == (512, 640) and coarse.shape == (256, 320)
    down = read_json(tmp_path / "down" / "comparison.json")["slides"]["s"]
    expected = sklearn.metrics.confusion_matrix(
        coarse.ravel(), fine[1::2, 1::2].ravel(), labels=range(5)
    )
    np.testing.assert_array_equal(down["pixels"], expected)
    up = read_json(tmp_path / "up" / "comparison.json")["slides"]["s"]
    large = coarse.repeat(2, 0).repeat(2, 1)
    expected = sklearn.metrics.confusion_matrix(fine.ravel(), large.ravel(), labels=range(5))
    np.testing.assert_array_equal(up["pixels"], expected)
    assert "1 and 0.5 micrometers per pixel: the second was read" in down["notes"][0]


@pytest.mark.parametrize(("own", "other"), [(0.7, 1.0), (1.0, 0.3), (3.0, 0.9)])
def test_any_scale_and_any_bands(own, other):
    """As a mapping of each pixel by itself."""
    rng = np.random.default_rng(0)
    frames = []
    for scale in (own, other):
        width, height = (max(1, round(length / scale)) for length in (500, 333))
        frames.append(MapFrame(width, height, scale, (scale, scale * 1.01), (500, 333)))
    arrays = [rng.integers(0, 3, (f.height, f.width), np.uint8) for f in frames]
    legend = Legend(("a", "b"), [(1, 2, 3), (4, 5, 6), WHITE])
    maps = [
        LabelMap(lambda y0, y1, step, a=a: a[y0:y1:step, ::step], f, legend)
        for a, f in zip(arrays, frames)
    ]
    read = place_on_frame(maps[1], frames[0])
    expected = np.empty((frames[0].height, frames[0].width), np.uint8)
    for y, x in np.ndindex(expected.shape):
        row = int((y + 0.5) * frames[0].scale[1] / frames[1].scale[1])
        column = int((x + 0.5) * frames[0].scale[0] / frames[1].scale[0])
        expected[y, x] = arrays[1][min(row, frames[1].height - 1), min(column, frames[1].width - 1)]
    np.testing.assert_array_equal(read(0, frames[0].height, 1), expected)
    np.testing.assert_array_equal(read(5, 90, 7), expected[5:90:7, ::7])
    tables = find_common_classes(legend, legend).tables
    counts = count_pairs(maps[0].read_rows, read, frames[0], tables)
    np.testing.assert_array_equal(
        counts, sklearn.metrics.confusion_matrix(arrays[0].ravel(), expected.ravel())
    )


def test_classes_are_matched_by_name():
    first = Legend(("tumor", "stroma"), [(1, 0, 0), (2, 0, 0), WHITE])
    second = Legend(("stroma", "<b>fat", "tumor"), [(9, 0, 0), (8, 0, 0), (7, 0, 0), WHITE])
    legend, tables = find_common_classes(first, second)
    assert legend.names == ["tumor", "stroma", "<b>fat"]
    assert legend.palette == [(1, 0, 0), (2, 0, 0), (8, 0, 0), WHITE]
    assert [table.tolist() for table in tables] == [[0, 1, 3], [1, 2, 0, 3]]
    with pytest.raises(InputError, match=r"no class in common \(tumor, stroma; x\): compare maps"):
        find_common_classes(first, Legend(("x",), [(1, 1, 1), WHITE]))


def test_undefined_measures_are_none():
    agreement = measure_agreement(np.zeros((3, 3), np.int64), ("a", "b"))
    assert (agreement.share_equal, agreement.kappa, agreement.classes[0].dice) == (None, None, None)
    one_class = np.zeros((3, 3), np.int64)
    one_class[0, 0], one_class[0, 2] = 10**11, 5
    agreement = measure_agreement(one_class, ("a", "b"))
    assert (agreement.share_equal, agreement.kappa, agreement.first_only) == (1.0, None, 5)
    opposed = np.array([[0, 10**10, 0], [10**10, 0, 0], [0, 0, 0]])
    assert measure_agreement(opposed, ("a", "b")).kappa == -1.0


def change_summary(folder, change):
    summary = read_json(folder / "slide.json")
    change(summary)
    (folder / "slide.json").write_text(json.dumps(summary))


def test_several_slides_and_those_that_cannot_be_compared(maps, tmp_path, capsys):
    for workdir in ("a", "b"):
        for name in ("s", "<i>t", "lonely", "changed", "damaged"):
            shutil.copytree(maps / workdir / "s", tmp_path / workdir / name)
            (tmp_path / workdir / ".hidden").mkdir(exist_ok=True)
    # Each slide has a content of its own.
    for workdir in ("a", "b"):
        for number, name in enumerate(("<i>t", "lonely", "changed", "damaged")):
            crc = f"{number}-{workdir if name in ('lonely', 'changed') else ''}"
            change_summary(
                tmp_path / workdir / name,
                lambda summary, crc=crc: summary["settings"]["map"]["slide"].update(crc32=crc),
            )
    (tmp_path / "b" / "lonely").rename(tmp_path / "b" / "other")
    whole = (tmp_path / "b/damaged/label_map.ome.tif").read_bytes()
    (tmp_path / "b/damaged/label_map.ome.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"^2 slides not compared, listed in .*index\.html: "):
        compare_maps(tmp_path / "a", tmp_path / "b", tmp_path / "difference")
    document = read_json(tmp_path / "difference" / "comparison.json")
    assert document["slides"].keys() == {"s", "<i>t"}
    assert document["failed"].keys() == {"changed", "damaged"}
    assert "another slide has this name" in document["failed"]["changed"]
    assert "missing or damaged" in document["failed"]["damaged"]
    assert (document["first_only"], document["second_only"]) == (["lonely"], ["other"])
    said = capsys.readouterr().out
    assert f"only in {tmp_path / 'a'}: lonely" in said and "FAILED: " in said
    page = (tmp_path / "difference" / "index.html").read_text()
    assert "<i>t" not in page and "&lt;i&gt;t" in page and "Only in the second" in page
    one = np.array(document["slides"]["s"]["pixels"])
    np.testing.assert_array_equal(document["all"]["pixels"], 2 * one)
    # Without the slide that is gone its folder goes, too.
    shutil.rmtree(tmp_path / "a" / "<i>t")
    shutil.rmtree(tmp_path / "a" / "changed")
    shutil.rmtree(tmp_path / "a" / "damaged")
    compare_maps(tmp_path / "a", tmp_path / "b", tmp_path / "difference")
    assert sorted(path.name for path in (tmp_path / "difference").iterdir()) == [
        *("agreement.csv", "comparison.json", "config.json", "index.html", "pairs.csv", "s"),
    ]
    assert read_json(tmp_path / "difference" / "comparison.json")["all"] is None


def test_a_slide_is_found_under_another_name(maps, tmp_path):
    shutil.copytree(maps / "b" / "s", tmp_path / "b" / "renamed")
    compare_maps(maps / "a", tmp_path / "b", tmp_path / "difference")
    assert list(read_json(tmp_path / "difference" / "comparison.json")["slides"]) == ["s"]


def test_workdirs_that_have_nothing_to_compare(maps, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing", maps / "s.svs"):
        with pytest.raises(InputError, match=r"has no finished map of a slide: name a workdir"):
            compare_maps(maps / "a", path, tmp_path / "difference")
    shutil.copytree(maps / "b", tmp_path / "b")
    (tmp_path / "b" / "s").rename(tmp_path / "b" / "t")
    change_summary(tmp_path / "b/t", lambda summary: summary["settings"]["map"].pop("slide"))
    with pytest.raises(InputError, match=r"have no slide in common \(s; t\): name workdirs"):
        compare_maps(maps / "a", tmp_path / "b", tmp_path / "difference")
    assert not (tmp_path / "difference").exists()


def test_maps_of_other_classes(maps, tmp_path):
    shutil.copytree(maps / "b", tmp_path / "b")
    names = ["stroma", "x", "tumor", "y"]
    change_summary(
        tmp_path / "b/s", lambda summary: summary["settings"]["output"].update(classes=names)
    )
    compare_maps(maps / "a", tmp_path / "b", tmp_path / "difference")
    found = read_json(tmp_path / "difference" / "comparison.json")["slides"]["s"]
    assert "Classes of one map only: necrosis, lymphocytes, x, y." in found["notes"]
    first, second = read_labels(maps / "a/s"), read_labels(maps / "b/s")
    assert found["pixels"][0][0] == ((first == 0) & (second == 2)).sum() > 0  # both tumor
    assert len(found["pixels"]) == 7
    change_summary(
        tmp_path / "b/s", lambda summary: summary["settings"]["output"].update(classes=list("wxyz"))
    )
    with pytest.raises(InputError, match=r"1 slide not compared, .*: s: the maps have no class in"):
        compare_maps(maps / "a", tmp_path / "b", tmp_path / "difference")
