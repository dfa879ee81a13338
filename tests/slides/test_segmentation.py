"""The job that segments slides, end to end, with tiny networks."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from rasterio import features

from configs import base
from data.synthetic import DATASET
from tests.slides import short_segmentation
from tests.slides.made_slides import TILE, drawn_tissue, write_pyramid
from wsss_jax import config as config_lib
from wsss_jax import files, jobs
from wsss_jax.errors import InputError, Preempted
from wsss_jax.report import slide_pictures
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.outputs import cohort, pyramid, results
from wsss_jax.slides.reading import catalog

REPOSITORY = Path(__file__).parents[2]
SIZE = 640, 512  # of the made slides at level 0, pixels
MPP = 0.5  # at level 0
KILLS = 10
DETERMINISTIC = ("label_map.ome.tif", "tissue.geojson", "areas.csv")


def _slide(path: Path, mpp: float | None = MPP) -> Path:
    write_pyramid(path, *SIZE, drawn_tissue(*SIZE), mpp, levels=(1, 2, 4))
    return path


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    return _slide(tmp_path_factory.mktemp("slides") / "a slide.svs")


def _config(slides: Path | str, runs_dir: Path):
    config = base.segment(str(slides), str(runs_dir / "phase1"), str(runs_dir / "phase2"))
    config.mpp, config.batch_size, config.stride = 1.0, 16, 16
    config.geojson.min_area, config.geojson.simplify = 0.0, 0.0
    config.tissue.closing, config.tissue.min_tissue, config.tissue.min_hole = 8.0, 500.0, 500.0
    config_lib.validate(config)
    return config


@pytest.fixture(scope="module")
def finished(slide, runs_dir, tmp_path_factory) -> Path:
    """The workdir of a slide, everything asked for."""
    workdir = tmp_path_factory.mktemp("finished") / "maps"
    config = _config(slide, runs_dir)
    config.probabilities = True
    jobs.run(config, workdir)
    return workdir


def test_everything_is_there(finished):
    files = {path.name for path in (finished / "a slide").iterdir()}
    assert files == {
        *("label_map.ome.tif", "label_map_rgb.tif", "probabilities.ome.tif"),
        *("tissue.geojson", "areas.csv"),  # no ratios: the drawn classes have no roles
        *("thumbnail.png", "overlay.png", "small.jpg", "report.html", "slide.json", "parts"),
    }
    cohort = {path.name for path in finished.iterdir()}
    assert cohort == {
        *("a slide", "index.html", "areas.csv"),
        *("config.json", "dataset.json", "networks.json"),
    }
    own, all_slides = finished / "a slide" / "areas.csv", finished / "areas.csv"
    assert own.read_text("utf-8-sig") == all_slides.read_text("utf-8-sig")
    summary = json.loads((finished / "a slide" / "slide.json").read_text())
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


def test_finished_slides_are_skipped_and_changed_settings_redo_them(
    slide, finished, runs_dir, tmp_path, capsys
):
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    jobs.run(config, workdir)
    for name in DETERMINISTIC:  # of two runs
        assert (workdir / "a slide" / name).read_bytes() == (
            finished / "a slide" / name
        ).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (workdir / "a slide").iterdir()}
    capsys.readouterr()
    jobs.run(config, workdir)
    assert "1 of 1: a slide: finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    config.window, config.probabilities = "hann", False
    jobs.run(config, workdir)
    assert "was finished with other probabilities, window: done again" in capsys.readouterr().out
    assert not (workdir / "a slide" / "probabilities.ome.tif").exists()
    assert (workdir / "a slide" / "report.html").stat().st_mtime_ns > max(before.values())


def _no_load(config):
    raise AssertionError("a network is loaded")


def _times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"picture": 300}, {"overlay.png", "thumbnail.png", "small.jpg"}),
        (
            {"palette": "colorblind"},
            {"overlay.png", "thumbnail.png", "small.jpg", "label_map_rgb.tif"},
        ),
        ({"geojson.min_area": 100.0}, {"tissue.geojson"}),
        ({"probabilities": False}, set()),
    ],
)
def test_files_depend_on_their_own_settings(
    slide, finished, runs_dir, tmp_path, monkeypatch, changes, written
):
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    config.update_from_flattened_dict(changes)
    monkeypatch.setattr(networks, "load", _no_load)
    before = _times(workdir / "a slide")
    jobs.run(config, workdir)
    after = _times(workdir / "a slide")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {*written, "report.html", "slide.json"}
    gone = set() if config.probabilities else {"probabilities.ome.tif"}
    assert before.keys() - after.keys() == gone
    jobs.run(config, workdir)
    assert _times(workdir / "a slide") == after
    # The parts still have what they had: a slide without them is made anew, not its tiles.
    (workdir / "a slide" / "slide.json").unlink()
    (workdir / "a slide" / "areas.csv").unlink()
    jobs.run(config, workdir)
    assert json.loads((workdir / "a slide" / "slide.json").read_text())["tiles_of_last_start"] == 0
    assert (workdir / "a slide" / "areas.csv").read_bytes() == (
        finished / "a slide" / "areas.csv"
    ).read_bytes()


def test_a_kill_between_two_files_leaves_nothing_stale(
    slide, finished, runs_dir, tmp_path, monkeypatch
):
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    config.probabilities, config.palette = True, "colorblind"
    shutil.copytree(finished, workdir)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(slide_pictures, "write_pictures", killed)
        jobs.run(config, workdir)
    assert not (workdir / "a slide" / "slide.json").exists()
    jobs.run(config, workdir)
    jobs.run(config, tmp_path / "anew")
    for name in ("overlay.png", "label_map_rgb.tif", *DETERMINISTIC):
        expected = (tmp_path / "anew" / "a slide" / name).read_bytes()
        assert (workdir / "a slide" / name).read_bytes() == expected
    assert (workdir / "a slide" / "overlay.png").read_bytes() != (
        finished / "a slide" / "overlay.png"
    ).read_bytes()


def test_networks_that_changed_are_loaded(slide, finished, runs_dir, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "maps")
    shutil.copytree(runs_dir / "phase2", tmp_path / "phase2")
    config = _config(slide, runs_dir)
    config.probabilities, config.phase2 = True, str(tmp_path / "phase2")
    before = _times(tmp_path / "maps" / "a slide")
    jobs.run(config, tmp_path / "maps")  # a copy: other files, the same weights
    assert _times(tmp_path / "maps" / "a slide") == before
    (tmp_path / "phase2" / "dataset.json").touch()  # its content is what counts
    monkeypatch.setattr(networks, "load", _no_load)
    jobs.run(config, tmp_path / "maps")
    variables = next((tmp_path / "phase2" / "checkpoints").glob("*/variables"))
    (variables / "another").touch()
    with pytest.raises(AssertionError, match="a network is loaded"):
        jobs.run(config, tmp_path / "maps")


def test_precision_is_part_of_the_map(slide, finished, runs_dir, tmp_path, capsys):
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    config.precision = "float32"  # what they were trained in
    jobs.run(config, workdir)
    assert "finished before" in capsys.readouterr().out
    config.precision = "bfloat16"
    jobs.run(config, workdir)
    assert "was finished with other networks, precision: done again" in capsys.readouterr().out
    summary = json.loads((workdir / "a slide" / "slide.json").read_text())
    both = {"phase1": "bfloat16", "phase2": "bfloat16"}
    assert summary["settings"]["map"]["precision"] == both
    exact, coarse = (
        tifffile.imread(folder / "a slide" / "probabilities.ome.tif").astype(int)
        for folder in (finished, workdir)
    )
    assert (exact != coarse).any() and np.abs(exact - coarse).mean() < 8


def test_reports_say_what_the_networks_are_and_what_polygons_hold(
    slide, finished, runs_dir, tmp_path, capsys
):
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    config.probabilities, config.geojson.min_area = True, 20_000.0
    shutil.copytree(finished, workdir)
    jobs.run(config, workdir)
    assert "warning: Phase 2 was trained on tissue drawn by a program" in capsys.readouterr().out
    first, second = (
        json.loads((folder / "a slide" / "slide.json").read_text())
        for folder in (finished, workdir)
    )
    shares = [share for share in first["polygon_shares"].values() if share is not None]
    assert shares == pytest.approx([1] * len(shares))
    assert not any("polygons" in warning for warning in first["warnings"])
    assert any("drawn by a program" in warning for warning in first["warnings"])
    assert first["networks"]["phase2"]["epochs"] == 1
    held = dict.fromkeys(DATASET.classes, 0.0)
    for feature in json.loads((workdir / "a slide" / "tissue.geojson").read_text())["features"]:
        name = feature["properties"]["classification"]["name"]
        held[name] += shapely.geometry.shape(feature["geometry"]).area / 4
    pixels = {row["class"]: row["pixels"] for row in second["areas"]}
    for name, share in second["polygon_shares"].items():
        assert share is None or share == pytest.approx(held[name] / pixels[name])
    assert any(warning.startswith("the polygons of") for warning in second["warnings"])
    page = (workdir / "a slide" / "report.html").read_text("utf-8")
    for words in (
        "synthetic tissue (drawn by a program)",
        "1 of 1",
        "the polygons of",
        "Share held",
    ):
        assert words in page, words


def test_messages_on_pages_name_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = Path("slides"), tmp_path / "maps", Path()
    for text in (f"{tmp_path}/slides/a.svs: bad", "slides/a.svs: bad", f"{tmp_path}/a.svs: bad"):
        assert cohort.without_folders(text, folders) == "a.svs: bad"
    for kept in ("../a.svs or ./b.svs of the folder maps", "1.5 mm/px and tissue/slides/x.png"):
        assert cohort.without_folders(kept, folders) == kept
    assert cohort.without_folders("see /data/x/b.svs; or (/data/c.svs)", ()) == (
        "see b.svs; or (c.svs)"
    )
    spaces = Path("/data/of a study/x")
    assert cohort.without_folders(f"{spaces}/a b.svs: bad", [spaces]) == "a b.svs: bad"


def test_pages_do_not_name_the_folders_of_the_machine(slide, runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        networks, "load", lambda config: networks.Networks(short_segmentation.predict, {})
    )
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "empty.svs").touch()
    (tmp_path / "slides" / "good.svs").symlink_to(slide)
    with pytest.raises(InputError, match="an empty file"):
        jobs.run(_config(tmp_path / "slides", runs_dir), tmp_path / "maps")
    for page in ("index.html", "good/report.html"):
        text = (tmp_path / "maps" / page).read_text("utf-8")
        assert str(tmp_path) not in text and str(runs_dir) not in text
    assert "empty.svs: an empty file" in (tmp_path / "maps" / "index.html").read_text("utf-8")
    assert str(tmp_path) in (tmp_path / "maps" / "good" / "slide.json").read_text("utf-8")


def test_other_polygons_and_pictures_need_no_new_tiles(slide, finished, runs_dir, tmp_path, capsys):
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    config.probabilities = True
    shutil.copytree(finished, workdir)
    config.geojson.min_area, config.picture = 100.0, 300
    jobs.run(config, workdir)
    assert "was finished with other geojson, picture: done again" in capsys.readouterr().out
    assert json.loads((workdir / "a slide" / "slide.json").read_text())["tiles_of_last_start"] == 0
    first, second = (
        {path.name: path.read_bytes() for path in (folder / "a slide").iterdir() if path.is_file()}
        for folder in (finished, workdir)
    )
    same = {name for name in first if first[name] == second[name]}
    maps = {"label_map.ome.tif", "label_map_rgb.tif", "probabilities.ome.tif"}
    assert same == {*maps, "areas.csv"}
    assert len(second["tissue.geojson"]) < len(first["tissue.geojson"])


def test_a_slide_is_made_by_one_process(slide, finished, runs_dir, tmp_path):
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    with (
        files.hold_lock(workdir / "a slide" / "parts" / "lock"),
        pytest.raises(InputError, match=r"another process works in .*a slide/parts: wait until"),
    ):
        jobs.run(config, workdir)
    assert "another process works" in (workdir / "failed.txt").read_text()
    jobs.run(config, workdir)
    assert not (workdir / "failed.txt").exists()


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
    _slide(folder / "absurd.svs", mpp=250.0)
    _slide(folder / "without.svs", mpp=None)
    glass = np.full((TILE, TILE, 3), 244, np.uint8)
    write_pyramid(folder / "glass.svs", *SIZE, lambda x, y: glass, MPP)
    words = {
        "absurd": "250 micrometers per pixel, which is absurd",
        "cut": "copy the slide again",
        "empty": "an empty file; copy the slide again",
        "folder.svs": "a folder without .dcm files",
        "glass": "no tissue found; look at the slide, lower",
        "text": "not a slide, whatever its name says",
        "without": "set --config.slide_mpp=0.25",
    }
    locked = folder / "locked.svs"
    locked.write_bytes(content)
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root may read everything, unless it lacks CAP_DAC_OVERRIDE
        locked.unlink()
    else:
        words["locked"] = "Permission denied; make the file readable"
    config, workdir = _config(folder / "*", runs_dir), tmp_path / "maps"
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
    assert "mpp.csv: for none of these slides: whitout\n" in printed


def test_sigterm_is_heeded_between_batches(slide, runs_dir, tmp_path, monkeypatch):
    def predict(images):
        os.kill(os.getpid(), signal.SIGTERM)
        return short_segmentation.predict(images)

    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    monkeypatch.setattr(networks, "load", lambda config: networks.Networks(predict, {}))
    with pytest.raises(Preempted, match="stopped by SIGTERM in a slide; the same command goes on"):
        jobs.run(config, workdir)
    assert not (workdir / "a slide" / "slide.json").exists()


def test_a_signal_after_the_last_tile_stops_nothing(slide, runs_dir, tmp_path, monkeypatch):
    def write_pictures(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        written(*arguments)

    written = slide_pictures.write_pictures
    monkeypatch.setattr(slide_pictures, "write_pictures", write_pictures)
    monkeypatch.setattr(
        networks, "load", lambda config: networks.Networks(short_segmentation.predict, {})
    )
    jobs.run(_config(slide, runs_dir), tmp_path / "maps")
    assert (tmp_path / "maps" / "a slide" / "slide.json").is_file()
    shutil.copy(slide, tmp_path / "b.svs")
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        jobs.run(_config(f"{tmp_path / 'b.svs'},{slide}", runs_dir), tmp_path / "both")
    assert (tmp_path / "both" / "b" / "slide.json").is_file()


def test_networks_that_are_others_when_they_are_needed_stop_the_job(
    slide, runs_dir, tmp_path, monkeypatch
):
    made = networks.Networks(short_segmentation.predict, {"phase1": "1", "phase2": "2"})
    workdir = tmp_path / "maps"
    monkeypatch.setattr(networks, "load", lambda config: made)
    jobs.run(_config(slide, runs_dir), workdir)
    for name in ("b", "c"):
        shutil.copy(slide, tmp_path / f"{name}.svs")
    other = made._replace(checksums={"phase1": "1", "phase2": "3"})
    monkeypatch.setattr(networks, "load", lambda config: other)
    config = _config(f"{slide},{tmp_path / 'b.svs'},{tmp_path / 'c.svs'}", runs_dir)
    with pytest.raises(networks.NetworksChanged, match=r"phase2: the weights are not those that"):
        jobs.run(config, workdir)
    assert not (workdir / "b" / "slide.json").exists() and not (workdir / "c").exists()
    assert not (workdir / "networks.json").exists()
    jobs.run(config, workdir)
    summary = json.loads((workdir / "b" / "slide.json").read_text())
    assert summary["settings"]["map"]["networks"]["phase2"] == "3"


def test_a_slide_keeps_the_name_of_its_finished_map(slide, runs_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        networks, "load", lambda config: networks.Networks(short_segmentation.predict, {})
    )
    (tmp_path / "slides").mkdir()
    shutil.copy(slide, tmp_path / "slides" / "a.svs")
    jobs.run(_config(tmp_path / "slides", runs_dir), tmp_path / "maps")
    shutil.copy(slide, tmp_path / "slides" / "a.tif")
    jobs.run(_config(tmp_path / "slides", runs_dir), tmp_path / "maps")
    printed = capsys.readouterr().out
    assert "a.svs: its results stay in " in printed and "1 of 2: a: finished before" in printed
    folders = {path.name for path in (tmp_path / "maps").iterdir() if path.is_dir()}
    assert folders == {"a", "a.tif"}


def test_a_given_tissue_mask(slide, runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        networks, "load", lambda config: networks.Networks(short_segmentation.predict, {})
    )
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
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


def _by_color(slide: Path, folder: Path, **changes: object) -> dict:
    """The summary of a slide segmented without trained networks."""
    config = base.segment(str(slide), "", "unused")
    config.tile, config.stride, config.batch_size = 64, 64, 8
    config.geojson.min_area, config.geojson.simplify = 0.0, 0.0
    config.update_from_flattened_dict(changes)
    made = networks.Networks(short_segmentation.predict, {"phase2": "by color"})
    file = catalog.SlideFile(slide, slide.stem, None)
    tissue_map.segment_slide(config, DATASET, made, file, folder, show_progress=False)
    return json.loads((folder / "slide.json").read_text())


BY_COLOR = {"mpp": 1.0, "tissue.min_tissue": 500.0}


def test_what_is_outdated_is_seen_while_the_folder_is_held(slide, tmp_path, monkeypatch):
    """Another process makes another map between the first look and the lock."""
    _by_color(slide, tmp_path / "map", **BY_COLOR)
    expected = _by_color(slide, tmp_path / "anew", picture=300, **BY_COLOR)
    real = tissue_map.hold_lock

    def late(path, **options):
        monkeypatch.setattr(tissue_map, "hold_lock", real)
        _by_color(slide, tmp_path / "map", stride=32, **BY_COLOR)
        return real(path, **options)

    monkeypatch.setattr(tissue_map, "hold_lock", late)
    summary = _by_color(slide, tmp_path / "map", picture=300, **BY_COLOR)
    assert summary["areas"] == expected["areas"]
    for name in DETERMINISTIC:
        assert (tmp_path / "map" / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()


def test_files_of_others_are_left_alone(slide, tmp_path):
    folder = tmp_path / "map"
    folder.mkdir()
    for name in ("tissue.geojson", "probabilities.ome.tif"):
        (folder / name).write_text("theirs")
    with pytest.raises(InputError, match=r"map has files that .* such as probabilities\.ome\.tif"):
        _by_color(slide, folder, **BY_COLOR)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "tissue.geojson": "theirs",
        "probabilities.ome.tif": "theirs",
    }
    for path in folder.iterdir():
        path.unlink()
    (folder / ".hidden").touch()
    _by_color(slide, folder, **BY_COLOR)
    (folder / "probabilities.ome.tif").write_text("theirs")
    _by_color(slide, folder, **BY_COLOR, picture=300)
    assert (folder / "probabilities.ome.tif").read_text() == "theirs"


def test_files_that_were_cut_are_written_again(slide, tmp_path, capsys):
    _by_color(slide, tmp_path / "map", **BY_COLOR)
    whole = (tmp_path / "map" / "label_map.ome.tif").read_bytes()
    for content in (b"", whole[:-100]):
        (tmp_path / "map" / "label_map.ome.tif").write_bytes(content)
        before = _times(tmp_path / "map")
        _by_color(slide, tmp_path / "map", **BY_COLOR)
        assert "finished with files that are gone or cut: done again" in capsys.readouterr().out
        after = _times(tmp_path / "map")
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {"label_map.ome.tif", "report.html", "slide.json"}
        assert (tmp_path / "map" / "label_map.ome.tif").read_bytes() == whole


@pytest.mark.parametrize(
    ("field", "value"),
    [("areas", None), ("settings", {"map": None}), ("name", 5), ("ratios", []), ("files", [1])],
)
def test_a_damaged_summary_is_of_no_finished_slide(slide, tmp_path, field, value):
    summary = {
        "settings": {"map": {}, "output": {}},
        **{"files": [], "tiles": 1, "tissue_pixels": 1, "areas": [], "ratios": {}},
        **{"warnings": [], "name": "a", "file": "a.svs"},
    }
    (tmp_path / "slide.json").write_text(json.dumps(summary))
    assert results.read_summary(tmp_path) == summary
    (tmp_path / "slide.json").write_text(json.dumps(summary | {field: value}))
    assert results.read_summary(tmp_path) is None


def test_areas_and_polygons_of_pixels_that_are_not_square(tmp_path):
    """1024 x 768 pixels of 0.25 x 0.5 µm are 256 x 384 µm; the left half is tissue."""
    image = np.full((768, 1024, 3), 244, np.uint8)
    image[:, :512] = (200, 130, 170)
    path = tmp_path / "tall.tif"
    resolution = {"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, photometric="rgb", tile=(256, 256), **resolution)
    changes = {"mpp": 0.5, "tissue.min_tissue": 1000.0}
    summary = _by_color(path, tmp_path / "map", **changes)
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


def test_other_resampling_makes_a_map_anew(slide, tmp_path, capsys):
    changes = {"mpp": 0.7, "tissue.min_tissue": 500.0}
    first = _by_color(slide, tmp_path / "map", **changes)
    assert first["settings"]["map"]["resampling"] == "area"
    labels = (tmp_path / "map/label_map.ome.tif").read_bytes()
    second = _by_color(slide, tmp_path / "map", resampling="triangle", **changes)
    assert "was finished with other resampling: done again" in capsys.readouterr().out
    assert second["settings"]["map"]["resampling"] == "triangle"
    assert second["tiles_of_last_start"] == second["tiles"]
    assert (tmp_path / "map/label_map.ome.tif").read_bytes() != labels
    assert "triangle filter" in (tmp_path / "map/report.html").read_text()


def test_ray_gives_the_same_bytes(slide, finished, runs_dir, tmp_path):
    ray = pytest.importorskip("ray")
    config, workdir = _config(slide, runs_dir), tmp_path / "maps"
    config.engine = "ray"
    ray.init(num_cpus=1, object_store_memory=100_000_000, log_to_driver=False)
    try:
        jobs.run(config, workdir)
    finally:
        ray.shutdown()
    for name in DETERMINISTIC:
        expected = (finished / "a slide" / name).read_bytes()
        assert (workdir / "a slide" / name).read_bytes() == expected


def test_without_ray(slide, runs_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = _config(slide, runs_dir)
    config.engine = "ray"
    with pytest.raises(InputError, match=r"pip install ray, or set --config\.engine=local"):
        jobs.run(config, tmp_path / "maps")


def test_what_the_runs_decide(runs_dir, slide):
    config = _config(slide, runs_dir)
    config.stride = 0
    networks.settle(config)
    assert (config.tile, config.stride) == (32, 8)
    config.mpp = 0.0
    with pytest.raises(InputError, match=r"does not say .* set --config\.mpp=1\.0"):
        networks.settle(config)


def test_slides_are_found_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.svs", "a/x.tif", "a/y.svs", "a/notes.txt", "b/Y.svs", "b/z.svs", "d/0.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = catalog.files(catalog.find("a,b/*.svs,a/x.*,d"), 0.0, {"x": 0.5, "x.tif": 0.4})
    assert [(str(file.path), file.name, file.mpp) for file in found] == [
        ("a/x.svs", "x.svs", 0.5),
        ("a/x.tif", "x.tif", 0.4),
        ("a/y.svs", "a_y.svs", None),
        ("b/Y.svs", "b_Y.svs", None),
        ("b/z.svs", "z", None),
        ("d", "d", None),
    ]
    for text, words in (("c", "there is no c"), (",", "names no slide"), ("..", "no file that")):
        with pytest.raises(InputError, match=words):
            catalog.find(text)


def test_odd_names_get_folders_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    latin1 = os.fsdecode(b"Sch\xe4fer.svs")
    for name in ("d/0.dcm", "..svs", "...svs", latin1):
        (tmp_path / name).touch()
    (tmp_path / "lost.svs").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path / "d")
    paths = catalog.find("., ../..svs, ../...svs")
    assert [file.name for file in catalog.files(paths, 0.0, {})] == ["d", "..svs", "...svs"]
    found = catalog.files(catalog.find(".."), 0.0, {})
    assert [file.name for file in found] == ["Sch_fer", "d", "lost"]


def test_slides_whose_names_are_no_text(slide, runs_dir, tmp_path):
    (tmp_path / "slides").mkdir()
    os.symlink(slide, os.fsencode(tmp_path / "slides") + b"/Sch\xe4fer.svs")
    (tmp_path / "slides" / os.fsdecode(b"cut\xe4.svs")).touch()
    config, workdir = _config(tmp_path / "slides", runs_dir), tmp_path / "maps"
    with pytest.raises(InputError, match="an empty file"):
        jobs.run(config, workdir)
    assert (workdir / "Sch_fer" / "report.html").is_file()
    assert "cut_: " in (workdir / "failed.txt").read_text(encoding="utf-8")


def test_what_is_left_in_a_folder_does_not_matter(slide, runs_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        networks, "load", lambda config: networks.Networks(short_segmentation.predict, {})
    )
    folder = tmp_path / "maps" / "a slide"
    (folder / ".unfinished.label_map.ome.tif.x").mkdir(parents=True)
    (folder / "slide.json").write_text("{}")
    config_lib.save(_config(slide, runs_dir), tmp_path / "maps")
    jobs.run(_config(slide, runs_dir), tmp_path / "maps")
    assert (folder / "areas.csv").is_file() and not list(folder.glob(".unfinished*"))


def test_another_slide_of_the_same_name_replaces_nothing(
    slide, finished, runs_dir, tmp_path, monkeypatch
):
    shutil.copytree(finished, tmp_path / "maps")
    config = _config(Path(slide.name), runs_dir)  # by the same relative path, from another folder
    config.picture = 100
    monkeypatch.chdir(slide.parent)
    jobs.run(config, tmp_path / "maps")
    monkeypatch.chdir(tmp_path)
    other = Path(slide.name)
    write_pyramid(other, *SIZE, drawn_tissue(*SIZE), 2 * MPP)
    summary = tmp_path / "maps" / "a slide" / "slide.json"
    before = summary.read_bytes()
    with pytest.raises(InputError, match=rf"another slide, {slide}; name another --workdir"):
        jobs.run(_config(other, runs_dir), tmp_path / "maps")
    assert summary.read_bytes() == before


def test_a_full_disk_is_said_of_the_workdir(slide, runs_dir, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pyramid, "write_label_map", full)
    workdir = tmp_path / "maps"
    with pytest.raises(InputError, match=rf"{workdir}/a slide: No space left .* --workdir"):
        jobs.run(_config(slide, runs_dir), workdir)


def test_killed_slides_end_with_the_same_bytes(tmp_path):
    size = 160, 5000
    write_pyramid(tmp_path / "tall.svs", *size, drawn_tissue(*size), MPP)
    arguments = [tmp_path / "tall.svs", tmp_path, str(KILLS)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.slides.short_segmentation", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    killed = [path for path in tmp_path.glob("killed*") if path.is_dir()]
    assert killed
    resumed = 0
    for folder in killed:
        for name in DETERMINISTIC:
            assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
        summary = json.loads((folder / "slide.json").read_text())
        resumed += summary["tiles_of_last_start"] < summary["tiles"]
        assert not list(folder.rglob(".unfinished.*"))
    assert resumed
