"""Maps that a person has corrected in QuPath, counted."""

import gzip
import json
import shutil

import numpy as np
import pytest

from configs import recount as recount_config
from data.pictures import open_picture
from data.synthetic import DATASET
from tests.polygons.drawing_files import make_box, make_feature, write_geojson
from tests.polygons.polygon_runs import EXCLUDED, STROMA, TUMOR
from tests.slides.slide_runs import (
    BY_COLOR,
    compare_maps,
    read_json,
    read_labels,
    read_times,
    segment_by_color,
    write_slide,
)
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.polygons.corrected_maps import CorrectionRule, recount
from wsss_jax.slides.mapping import parts
from wsss_jax.slides.outputs import results

RULE = CorrectionRule((), (), "smaller", "excluded")


def run(annotations, map_, workdir, **fields):
    config = recount_config.get_config()
    config.annotations, config.map = str(annotations), str(map_)
    for name, value in fields.items():
        config[name] = value
    config_lib.validate(config)
    jobs.run(config, workdir)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """The workdir of the map of a slide of 640 x 512 pixels; the map has half as many each way."""
    root = tmp_path_factory.mktemp("recount")
    slide = write_slide(root / "s.svs")
    segment_by_color(slide, root / "maps" / "s", **BY_COLOR)
    return root / "maps"


def test_annotations_that_were_not_changed_give_the_map_again(maps, tmp_path, capsys):
    """What QuPath exports of an import is what was imported."""
    shutil.copy(maps / "s" / "tissue.geojson", tmp_path / "s.geojson")
    run(tmp_path / "s.geojson", maps, tmp_path / "corrected")
    folder = tmp_path / "corrected" / "s"
    np.testing.assert_array_equal(read_labels(folder), read_labels(maps / "s"))
    assert (folder / "tissue.geojson").read_bytes() == (maps / "s/tissue.geojson").read_bytes()
    assert (folder / "areas.csv").read_bytes() == (maps / "s/areas.csv").read_bytes()
    assert (tmp_path / "corrected/areas.csv").read_bytes() == (folder / "areas.csv").read_bytes()
    assert (folder / "overlay.png").read_bytes() == (maps / "s/overlay.png").read_bytes()
    before, after = (read_json(each / "slide.json") for each in (maps / "s", folder))
    assert after["areas"] == before["areas"] and after["tissue_pixels"] == before["tissue_pixels"]
    assert after["correction"]["changed"] == {"pixels": 0, "share": 0.0}
    for kept in ("networks", "runs", "versions", "file", "levels", "tiles", "seconds"):
        assert after[kept] == before[kept]
    same = {**after["settings"]["map"]}
    assert same.pop("correction")["annotations"] == len(
        json.loads((tmp_path / "s.geojson").read_text())["features"]
    )
    assert same == before["settings"]["map"]
    page = (folder / "report.html").read_text()
    assert "corrected by hand: " in page and "Correction" in page
    assert "0.0% of the area with a class changed" in capsys.readouterr().out


def test_corrections_are_counted(maps, tmp_path):
    content = json.loads((maps / "s/tissue.geojson").read_text())
    # As QuPath writes: a large annotation, a smaller one in it drawn before, one without class.
    content["features"] += [
        make_feature(STROMA, [make_box(240, 240, 260, 250)]),
        make_feature(TUMOR, [make_box(200, 200, 400, 300)]),
        make_feature("Ignore*", [make_box(300, 200, 310, 210)]),
    ]
    for feature in content["features"]:
        feature["properties"].pop("isLocked", None)
    path = tmp_path / "s.geojson.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    run(path, maps / "s", tmp_path / "corrected")
    expected, before = read_labels(maps / "s"), read_labels(maps / "s")
    # Regions of the map inside the box are smaller than it and lie over it.
    values = {name: value for value, name in enumerate(DATASET.classes)}
    order = sorted(content["features"], key=lambda feature: -_measure(feature))
    expected[:] = EXCLUDED
    for feature in order:
        value = values.get(feature["properties"]["classification"]["name"], EXCLUDED)
        for x, y in _list_pixels(feature):
            expected[y, x] = value
    np.testing.assert_array_equal(read_labels(tmp_path / "corrected/s"), expected)
    assert (expected[100:105, 150:155] == EXCLUDED).all()
    summary = read_json(tmp_path / "corrected/s/slide.json")
    pixels = {row["class"]: row["pixels"] for row in summary["areas"]}
    for name, value in values.items():
        assert pixels[name] == np.count_nonzero(expected == value)
    assert sum(pixels.values()) == expected.size and min(pixels.values()) >= 0
    assert summary["correction"]["changed"]["pixels"] == np.count_nonzero(expected != before) > 0
    assert not (tmp_path / "corrected/s/ratios.csv").exists()  # the drawn classes have no roles


def test_what_was_corrected_is_shown_by_the_comparison(maps, tmp_path):
    path = write_geojson(tmp_path / "s.geojson", [make_feature(STROMA, [make_box(0, 0, 300, 300)])])
    run(path, maps, tmp_path / "corrected", outside="map")
    compare_maps(maps, tmp_path / "corrected", tmp_path / "difference")
    found = read_json(tmp_path / "difference" / "comparison.json")["slides"]["s"]
    assert found["notes"] == ["The maps were made with other correction."]
    summary = read_json(tmp_path / "corrected/s/slide.json")
    pairs = np.array(found["pixels"])
    assert pairs.sum() - np.trace(pairs) == summary["correction"]["changed"]["pixels"] > 0
    counted = [row["pixels"] for row in summary["areas"]][:4]
    assert pairs.sum(axis=0)[:4].tolist() == counted


def _list_pixels(feature):
    """Pixels of the map whose middles lie in a feature, by the even-odd rule, one by one."""
    from matplotlib.path import Path as Outline

    grid = np.stack(np.meshgrid(np.arange(320) * 2 + 1, np.arange(256) * 2 + 1), -1).reshape(-1, 2)
    inside = np.zeros(len(grid), bool)
    for ring in feature["geometry"]["coordinates"]:
        inside ^= Outline(np.array(ring)).contains_points(grid)
    return (grid[inside] // 2).tolist()


def _measure(feature):
    rings = [np.array(ring, float) for ring in feature["geometry"]["coordinates"]]
    areas = [abs(np.sum(r[:-1, 0] * r[1:, 1] - r[1:, 0] * r[:-1, 1])) / 2 for r in rings]
    return areas[0] - sum(areas[1:])


def test_what_is_drawn_later_and_over_the_map(maps, tmp_path):
    boxes = [(STROMA, make_box(0, 0, 20, 20)), (TUMOR, make_box(0, 0, 100, 60))]
    path = write_geojson(tmp_path / "s.geojson", [make_feature(n, [box]) for n, box in boxes])
    stroma = DATASET.classes.index(STROMA)
    before = read_labels(maps / "s")
    run(path, maps, tmp_path / "smaller")
    labels = read_labels(tmp_path / "smaller/s")
    assert (labels[:10, :10] == stroma).all() and (labels[:30, 10:50] == 0).all()
    assert (labels[30:] == EXCLUDED).all() and (labels[:, 50:] == EXCLUDED).all()
    run(path, maps, tmp_path / "drawn", overlap="drawn", outside="map")
    labels = read_labels(tmp_path / "drawn/s")
    assert (labels[:30, :50] == 0).all()
    np.testing.assert_array_equal(labels[30:], before[30:])
    np.testing.assert_array_equal(labels[:, 50:], before[:, 50:])
    # On glass: more tissue than before, and no negative row.
    summary = read_json(tmp_path / "drawn/s/slide.json")
    old = read_json(maps / "s/slide.json")
    new = np.count_nonzero(before[:30, :50] == EXCLUDED)
    assert old["tissue_pixels"] < summary["tissue_pixels"] <= old["tissue_pixels"] + new
    assert sum(row["pixels"] for row in summary["areas"]) == before.size
    assert min(row["pixels"] for row in summary["areas"]) >= 0
    with open_picture(tmp_path / "drawn/s/overlay.png", ("PNG",)) as picture:
        assert picture.size[0] > 320


def test_parts_and_a_killed_job_give_the_same(maps, tmp_path, monkeypatch):
    shutil.copy(maps / "s" / "tissue.geojson", tmp_path / "s.geojson")
    recount(tmp_path / "s.geojson", maps / "s", tmp_path / "whole" / "s", RULE)
    monkeypatch.setattr(
        parts.Layout, "__init__", lambda self, width, height: _lay_out(self, width, height)
    )
    folder = tmp_path / "parts" / "s"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        written = parts.Parts.write

        def write(self, part, *arrays):
            written(self, part, *arrays)
            if len(self.finished) == 3:
                raise KeyboardInterrupt

        patch.setattr(parts.Parts, "write", write)
        recount(tmp_path / "s.geojson", maps / "s", folder, RULE)
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.bin")}
    assert len(kept) == 3 and not (folder / "slide.json").exists()
    recount(tmp_path / "s.geojson", maps / "s", folder, RULE)
    assert all((folder / "parts" / n).stat().st_mtime_ns == time for n, time in kept.items())
    assert len(list((folder / "parts").glob("*.bin"))) == 3 * 4
    for name in ("label_map.ome.tif", "tissue.geojson", "areas.csv", "overlay.png"):
        assert (folder / name).read_bytes() == (tmp_path / "whole/s" / name).read_bytes()


def _lay_out(layout, width, height):
    for name, value in {"width": width, "height": height, "strip": 130, "rows": 70}.items():
        object.__setattr__(layout, name, value)


def test_a_slide_that_was_scanned_in_part(maps, tmp_path):
    """Coordinates count from the corner of the scanned area."""
    shutil.copytree(maps, tmp_path / "maps")
    summary = read_json(maps / "s/slide.json")
    summary["bounds"] = [40, 20, 500, 400]
    (tmp_path / "maps/s/slide.json").write_text(json.dumps(summary))
    path = write_geojson(tmp_path / "s.geojson", [make_feature(TUMOR, [make_box(0, 0, 60, 40)])])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "image": {"name": "s", "width": 500, "height": 400}}))
    run(path, tmp_path / "maps", tmp_path / "corrected")
    labels = read_labels(tmp_path / "corrected/s")
    assert (labels[10:30, 20:50] == 0).all() and np.count_nonzero(labels == 0) == 20 * 30


def test_finished_slides_are_left_as_they_are(maps, tmp_path, capsys):
    path = write_geojson(tmp_path / "s.geojson", [make_feature(TUMOR, [make_box(0, 0, 60, 40)])])
    run(path, maps, tmp_path / "corrected")
    before = read_times(tmp_path / "corrected/s")
    capsys.readouterr()
    run(path, maps, tmp_path / "corrected")
    assert "s: finished before" in capsys.readouterr().out
    assert read_times(tmp_path / "corrected/s") == before
    (tmp_path / "corrected/s/overlay.png").unlink()
    run(path, maps, tmp_path / "corrected")
    assert (tmp_path / "corrected/s/overlay.png").is_file()
    write_geojson(path, [make_feature(TUMOR, [make_box(0, 0, 20, 40)])])
    run(path, maps, tmp_path / "corrected")
    assert "started again" in capsys.readouterr().out
    assert np.count_nonzero(read_labels(tmp_path / "corrected/s") == 0) == 10 * 20
    # A correction of a correction.
    run(path, tmp_path / "corrected", tmp_path / "again")
    np.testing.assert_array_equal(
        read_labels(tmp_path / "again/s"), read_labels(tmp_path / "corrected/s")
    )
    warnings = read_json(tmp_path / "again/s/slide.json")["warnings"]
    assert [text.split(":")[0] for text in warnings][:2] == ["corrected by hand"] * 2


def test_files_are_matched_with_slides_by_name(maps, tmp_path):
    shutil.copytree(maps, tmp_path / "maps")
    shutil.copytree(maps / "s", tmp_path / "maps" / "<b>t")
    summary = read_json(maps / "s/slide.json")
    other = {**summary, "file": "/elsewhere/<b>t.ndpi", "name": "<b>t"}
    (tmp_path / "maps" / "<b>t" / "slide.json").write_text(json.dumps(other))
    (tmp_path / "files").mkdir()
    good = [make_feature(TUMOR, [make_box(0, 0, 60, 40)])]
    for name in ("s.svs.geojson", "<b>t.geojson", "s.json", "unknown.geojson"):
        write_geojson(tmp_path / "files" / name, good)
    with pytest.raises(InputError, match=r"^2 of 4 files failed, listed in .*failed\.txt: "):
        run(tmp_path / "files", tmp_path / "maps", tmp_path / "corrected")
    failed = (tmp_path / "corrected/failed.txt").read_text().splitlines()
    assert len(failed) == 2
    assert "has the annotations of the same slide; keep one" in failed[0]
    assert "unknown.geojson: no map is called so; name the file as its slide" in failed[1]
    names = {folder.name for folder, _ in results.list_finished(tmp_path / "corrected")}
    assert names == {"s", "<b>t"}
    page = (tmp_path / "corrected" / "<b>t" / "report.html").read_text()
    assert "<b>t" not in page
    table = (tmp_path / "corrected/areas.csv").read_text("utf-8-sig")
    assert table.count("\ns,") == table.count("\n<b>t,") == 6


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([make_feature("Tumour", [make_box(0, 0, 9, 9)])], r"no class has the label of feature 1"),
        ([make_feature(None, [make_box(0, 0, 9, 9)])], r"no class .*feature 1 \(without class\)"),
        ([make_feature(TUMOR, [make_box(900, 0, 950, 9)])], "lies outside of the image"),
        ([], "no annotation with an area; export the annotations again"),
        ([make_feature(TUMOR, [[[0, 0], [5, 5], [0, 0]]])], "a ring of 2 corners"),
        ([make_feature(TUMOR, [[[0, 0], ["x", 5], [0, 9], [0, 0]]])], "as a point, not"),
    ],
)
def test_annotations_that_cannot_be_counted(maps, tmp_path, features, words):
    path = write_geojson(tmp_path / "s.geojson", features)
    with pytest.raises(InputError, match=words):
        run(path, maps, tmp_path / "corrected")
    assert not (tmp_path / "corrected" / "s").exists()


def test_labels_can_be_named_or_left_out(maps, tmp_path):
    features = [
        make_feature("Tumour", [make_box(0, 0, 60, 40)]),
        make_feature(None, [make_box(0, 0, 20, 20)]),
    ]
    path = write_geojson(tmp_path / "s.geojson", features)
    run(path, maps, tmp_path / "corrected", labels=(("Tumour", TUMOR),), ignored=("",))
    assert np.count_nonzero(read_labels(tmp_path / "corrected/s") == 0) == 20 * 30


def test_annotations_of_another_slide(maps, tmp_path):
    path = write_geojson(tmp_path / "s.geojson", [make_feature(TUMOR, [make_box(0, 0, 60, 40)])])
    content = json.loads(path.read_text())
    for image, words in (
        ({"width": 700, "height": 512}, "drawn on an image of 700 x 512 pixels, but the slide of"),
        ({"width": "640", "height": 512}, "image has no width and height; export it again"),
    ):
        path.write_text(json.dumps({**content, "image": image}))
        with pytest.raises(InputError, match=words):
            run(path, maps, tmp_path / "corrected")
    path.write_text(json.dumps({**content, "image": {"width": 640, "height": 512}}))
    run(path, maps, tmp_path / "corrected")
    shutil.copytree(maps, tmp_path / "other")
    summary = read_json(maps / "s/slide.json")
    summary["settings"]["map"]["slide"]["crc32"] = "00000000"
    (tmp_path / "other/s/slide.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"s has the map of another slide, .*s\.svs; name another"):
        run(path, tmp_path / "other", tmp_path / "corrected")


def test_maps_that_cannot_be_corrected(maps, tmp_path):
    path = write_geojson(tmp_path / "s.geojson", [make_feature(TUMOR, [make_box(0, 0, 60, 40)])])
    with pytest.raises(InputError, match=r"config\.map: .*missing has no finished map"):
        run(path, tmp_path / "missing", tmp_path / "corrected")
    with pytest.raises(InputError, match=r"config\.annotations: there is no .*nothing"):
        run(tmp_path / "nothing", maps, tmp_path / "corrected")
    shutil.copytree(maps, tmp_path / "maps")
    content = (maps / "s/label_map.ome.tif").read_bytes()
    (tmp_path / "maps/s/label_map.ome.tif").write_bytes(content[: len(content) // 2])
    run_outside = {"outside": "map"}
    with pytest.raises(InputError, match=r"label_map\.ome\.tif: missing or damaged"):
        run(path, tmp_path / "maps", tmp_path / "corrected", **run_outside)
    summary = read_json(maps / "s/slide.json")
    del summary["networks"]
    (tmp_path / "maps/s/slide.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"slide\.json: of an earlier version \('networks'\); run"):
        run(path, tmp_path / "maps", tmp_path / "earlier")
    labelme = tmp_path / "s.json"
    labelme.write_text(json.dumps({"shapes": [], "imagePath": "s.png", "imageData": None}))
    with pytest.raises(InputError, match="a file of labelme, but slides are corrected in QuPath"):
        run(labelme, maps, tmp_path / "corrected")
