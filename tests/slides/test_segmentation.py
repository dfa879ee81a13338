"""The job that segments slides, end to end, with tiny networks."""

import csv
import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image
from rasterio import features

from data.synthetic import DATASET
from data.synthetic_slides import TILE, Drawing, write_pyramid
from tests.slides import short_segmentation
from tests.slides.slide_runs import (
    MPP,
    SIZE,
    load_by_color,
    make_config,
    read_json,
    segment_by_color,
    write_slide,
)
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.slides import settings
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import pyramid


def test_all_files_are_written(finished):
    files = {path.name for path in (finished / "a slide").iterdir()}
    assert files == {
        *("label_map.ome.tif", "label_map_rgb.tif", "probabilities.ome.tif"),
        *("tissue.geojson", "areas.csv"),  # no ratios: the drawn classes have no roles
        *("thumbnail.png", "overlay.png", "small.jpg", "report.html", "slide.json", "parts"),
    }
    cohort = {path.name for path in finished.iterdir()}
    assert cohort == {
        *("a slide", "index.html", "areas.csv", "cohort.csv"),
        *("config.json", "dataset.json", "networks.json"),
    }
    own, all_slides = finished / "a slide" / "areas.csv", finished / "areas.csv"
    assert own.read_text("utf-8-sig") == all_slides.read_text("utf-8-sig")
    summary = read_json(finished / "a slide" / "slide.json")
    assert summary["mpp"] == MPP and summary["size"] == [320, 256]


def test_maps_polygons_and_areas_agree(finished):
    folder = finished / "a slide"
    labels = tifffile.imread(folder / "label_map.ome.tif")
    assert labels.shape == (256, 320) and (labels == 4).mean() > 0.2
    shapes = []
    for feature in json.loads((folder / "tissue.geojson").read_text())["features"]:
        value = DATASET.classes.index(feature["properties"]["classification"]["name"])
        rings = [np.array(ring) / 2 for ring in feature["geometry"]["coordinates"]]
        shapes.append(({"type": "Polygon", "coordinates": rings}, value))
    drawn = features.rasterize(shapes, out_shape=labels.shape, fill=4, dtype=np.uint8)
    np.testing.assert_array_equal(drawn, labels)
    with (folder / "areas.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    for value, name in enumerate(DATASET.classes):
        assert int(rows[name]["pixels"]) == np.count_nonzero(labels == value)
    means = tifffile.imread(folder / "probabilities.ome.tif")
    strongest = np.take_along_axis(means, np.minimum(labels, 3)[None], axis=0)[0]
    np.testing.assert_array_equal(strongest[labels < 4], means.max(axis=0)[labels < 4])
    assert not means[:, labels == 4].any()


def test_areas_and_polygons_of_pixels_that_are_not_square(tmp_path):
    """1024 x 768 pixels of 0.25 x 0.5 µm are 256 x 384 µm; the left half is tissue."""
    image = np.full((768, 1024, 3), 244, np.uint8)
    image[:, :512] = (200, 130, 170)
    path = tmp_path / "tall.tif"
    resolution = {"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, photometric="rgb", tile=(256, 256), **resolution)
    changes = {"mpp": 0.5, "tissue.min_tissue": 1000.0}
    summary = segment_by_color(path, tmp_path / "map", **changes)
    assert summary["size"] == [512, 768] and summary["mpp_xy"] == [0.25, 0.5]
    assert sum(row["mm2"] for row in summary["areas"]) == pytest.approx(0.098304)
    in_classes = sum(row["mm2"] for row in summary["areas"][:4])
    assert in_classes == pytest.approx(0.098304 / 2)
    corners, area = [], 0.0
    for feature in json.loads((tmp_path / "map/tissue.geojson").read_text())["features"]:
        corners += [corner for ring in feature["geometry"]["coordinates"] for corner in ring]
        (area_of_feature,) = feature["properties"]["measurements"].values()
        area += area_of_feature
    assert np.min(corners, axis=0).tolist() == [0, 0]
    assert np.max(corners, axis=0).tolist() == [512, 768]  # pixels of the slide
    assert area == pytest.approx(in_classes * 1e6)
    assert any("not square" in warning for warning in summary["warnings"])
    report = (tmp_path / "map/report.html").read_text()
    assert "0.25 x 0.5 µm per pixel" in report and "mean of the area that a pixel" in report


def test_a_given_tissue_mask(slide, runs_dir, tmp_path, monkeypatch):
    load_by_color(monkeypatch)
    config, workdir = make_config(slide, runs_dir), tmp_path / "maps"
    config.tissue.source = str(tmp_path / "masks")
    with pytest.raises(InputError, match=r"there is no folder .*masks; name one"):
        jobs.run(config, workdir)
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"there is no tissue mask .*a slide\.png; add it"):
        jobs.run(config, workdir)
    Image.new("L", (100, 10), 255).save(tmp_path / "masks" / "a slide.png")
    with pytest.raises(InputError, match=r"100 x 10 pixels, another shape than .*; save a mask of"):
        jobs.run(config, workdir)
    mask = np.zeros((2, 2), np.uint8)
    mask[:, 1] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a slide.png")
    jobs.run(config, workdir)
    labels = tifffile.imread(workdir / "a slide" / "label_map.ome.tif")
    assert (labels[:, :160] == 4).all() and (labels[:, 160:] < 4).mean() > 0.5


def test_tile_and_stride_follow_from_the_runs(runs_dir, slide):
    config = make_config(slide, runs_dir)
    config.stride = 0
    completed, _ = settings.complete(config)
    assert (completed.tile, completed.stride) == (32, 8)
    config.mpp = 0.0
    with pytest.raises(InputError, match=r"does not say .* set --config\.mpp=1\.0"):
        settings.complete(config)


def test_bad_slides_do_not_stop_the_others(slide, runs_dir, tmp_path, capsys):
    folder = tmp_path / "slides"
    folder.mkdir()
    good = (folder / "good.svs", folder / "later.svs")
    content = slide.read_bytes()
    for path in good:
        path.write_bytes(content)
    (folder / "cut.svs").write_bytes(content[: len(content) // 2])
    (folder / "empty.svs").write_bytes(b"")
    (folder / "text.svs").write_text("no slide at all\n" * 100)
    (folder / "folder.svs").mkdir()
    write_slide(folder / "absurd.svs", mpp=250.0)
    write_slide(folder / "without.svs", mpp=None)
    glass = np.full((TILE, TILE, 3), 244, np.uint8)
    write_pyramid(folder / "glass.svs", Drawing(*SIZE, lambda x, y: glass), MPP)
    words = {
        "absurd": "250 micrometers per pixel, which is absurd",
        "cut": "copy the slide again",
        "empty": "an empty file; copy the slide again",
        "folder.svs": "a folder without .dcm files",
        "glass": "no tissue found; look at the slide, lower",
        "text": "not a slide of a known format",
        "without": "set --config.slide_mpp=0.25",
    }
    locked = folder / "locked.svs"
    locked.write_bytes(content)
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root may read everything, unless it lacks CAP_DAC_OVERRIDE
        locked.unlink()
    else:
        words["locked"] = "Permission denied; make the file readable"
    config, workdir = make_config(folder / "*", runs_dir), tmp_path / "maps"
    with pytest.raises(InputError, match=rf"^{len(words)} of {len(words) + 2} slides failed"):
        jobs.run(config, workdir)
    lines = (workdir / "failed.txt").read_text().splitlines()
    assert len(lines) == len(words)
    for line, (name, text) in zip(lines, sorted(words.items())):
        assert line.startswith(f"{name}: {folder / name}") and text in line
    for path in good:
        assert (workdir / path.stem / "report.html").is_file()
    assert "text FAILED: " in capsys.readouterr().out

    # The user says what the metadata does not.
    config.slides = str(folder / "without.svs")
    config.slide_mpp = MPP
    jobs.run(config, workdir)
    left = [line for line in lines if not line.startswith("without: ")]
    assert (workdir / "failed.txt").read_text().splitlines() == left  # of the earlier job
    table = tmp_path / "mpp.csv"
    table.write_text(f"slide,mpp\nwithout,{MPP}\nwhitout,{MPP}\n")
    config.slide_mpp, config.mpp_table = 0.0, str(table)
    jobs.run(config, workdir)
    printed = capsys.readouterr().out
    assert "without: finished before" in printed
    assert "mpp.csv: lines that fit none of the slides: whitout\n" in printed


def test_a_full_disk_is_reported_with_the_workdir(slide, runs_dir, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pyramid, "write_label_map", full)
    workdir = tmp_path / "maps"
    with pytest.raises(InputError, match=rf"{workdir}/a slide: No space left .* --workdir"):
        jobs.run(make_config(slide, runs_dir), workdir)


def test_networks_that_change_during_the_job_stop_it(slide, runs_dir, tmp_path, monkeypatch):
    made = networks.Networks(short_segmentation.predict, {"phase1": "1", "phase2": "2"})
    workdir = tmp_path / "maps"
    monkeypatch.setattr(networks, "load", lambda config: made)
    jobs.run(make_config(slide, runs_dir), workdir)
    for name in ("b", "c"):
        shutil.copy(slide, tmp_path / f"{name}.svs")
    other = made._replace(checksums={"phase1": "1", "phase2": "3"})
    monkeypatch.setattr(networks, "load", lambda config: other)
    config = make_config(f"{slide},{tmp_path / 'b.svs'},{tmp_path / 'c.svs'}", runs_dir)
    with pytest.raises(networks.NetworksChanged, match=r"phase2: the weights are not those that"):
        jobs.run(config, workdir)
    assert not (workdir / "b" / "slide.json").exists() and not (workdir / "c").exists()
    assert not (workdir / "networks.json").exists()
    jobs.run(config, workdir)
    summary = read_json(workdir / "b" / "slide.json")
    assert summary["settings"]["map"]["networks"]["phase2"] == "3"


def test_without_ray(slide, runs_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = make_config(slide, runs_dir)
    config.engine = "ray"
    with pytest.raises(InputError, match=r"pip install ray, or set --config\.engine=local"):
        jobs.run(config, tmp_path / "maps")
