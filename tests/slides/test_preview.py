"""The coarse map of a slide at work: what it shows, costs and leaves behind."""

import itertools
import shutil

import numpy as np
import pytest

from data.pictures import open_picture
from data.synthetic import DATASET
from data.synthetic_slides import draw_section, write_pyramid
from tests.slides import short_segmentation
from tests.slides.slide_runs import DETERMINISTIC, segment_by_color
from wsss_jax.report import canvas, figures, slide_pictures
from wsss_jax.slides.mapping.coarse_map import CoarseMap, choose_tiles
from wsss_jax.slides.mapping.parts import Part
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.slides.mapping.tissue import Tissue
from wsss_jax.slides.outputs import thumbnails
from wsss_jax.slides.outputs.label_maps import open_label_map

CHANGES = {"mpp": 0.5, "tile": 64, "stride": 32, "batch_size": 8, "tissue.min_tissue": 500.0}
SHOWN = {**CHANGES, "preview.min_tiles": 50, "preview.seconds": 0.0}
EXCLUDED = DATASET.excluded


@pytest.fixture(scope="module")
def tall(tmp_path_factory):
    """A slide whose map has three parts, one below the other."""
    path = tmp_path_factory.mktemp("tall") / "tall.svs"
    write_pyramid(path, draw_section(300, 2500), 0.5)
    return path


@pytest.fixture(scope="module")
def without(tall, tmp_path_factory):
    """Its map, made without a preview."""
    folder = tmp_path_factory.mktemp("without") / "map"
    segment_by_color(tall, folder, **CHANGES, **{"preview.share": 0.0})
    return folder


class Watcher:
    """Records the batches that the networks get, and the picture there is before each."""

    def __init__(self, folder, stop_after=None):
        self.batches, self.pictures, self.titles = [], [], []
        self._path, self._stop_after = folder / "preview.png", stop_after

    def install(self, monkeypatch):
        monkeypatch.setattr(short_segmentation, "predict", self.predict)
        monkeypatch.setattr(canvas.ImageDraw.ImageDraw, "text", self.write)

    def predict(self, images, predict=short_segmentation.predict):
        if len(self.batches) == self._stop_after:
            raise KeyboardInterrupt
        self.batches.append(images)
        self.pictures.append(read(self._path) if self._path.exists() else None)
        return predict(images)

    def write(self, at, text, *arguments, **options):
        self.titles.append(text)


def read(path):
    with open_picture(path, ("PNG",)) as picture:
        return np.asarray(picture.convert("RGB"))


def cut_out(picture, thumbnail, lines=2):
    """The slide in a picture without margins and title."""
    top, left = slide_pictures.MARGIN + lines * canvas.HEADING_HEIGHT, slide_pictures.MARGIN
    height, width = thumbnail.shape[:2]
    return picture[top : top + height, left : left + width]


def test_the_map_is_the_same_and_its_batches_too(tall, without, tmp_path, monkeypatch):
    first, second = Watcher(tmp_path / "off"), Watcher(tmp_path / "on")
    with monkeypatch.context() as patch:
        first.install(patch)
        segment_by_color(tall, tmp_path / "off", **CHANGES, **{"preview.share": 0.0})
    with monkeypatch.context() as patch:
        second.install(patch)
        summary = segment_by_color(tall, tmp_path / "on", **SHOWN, **{"preview.share": 0.05})
    more = len(second.batches) - len(first.batches)
    assert 0 < more * 8 <= 0.05 * summary["tiles"] + 8
    for one, other in zip(first.batches, second.batches[more:], strict=True):
        np.testing.assert_array_equal(one, other)
    names = [*DETERMINISTIC, *(f"parts/{path.name}" for path in (without / "parts").iterdir())]
    assert len(names) > 5
    for name in names:
        assert (tmp_path / "on" / name).read_bytes() == (without / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "on").iterdir()) == sorted(
        path.name for path in without.iterdir()
    )


def test_the_picture_is_coarse_first_and_then_exact(tall, without, tmp_path, monkeypatch, capsys):
    watcher = Watcher(tmp_path / "map")
    watcher.install(monkeypatch)
    segment_by_color(tall, tmp_path / "map", **SHOWN, **{"preview.share": 0.05})
    said = capsys.readouterr().out
    assert f"tall: first a coarse map, {tmp_path}/map/preview.png, of " in said
    assert "% more than the" in said
    thumbnail = read(without / "thumbnail.png")
    pictures = [cut_out(each, thumbnail) for each in watcher.pictures if each is not None]
    assert np.count_nonzero((pictures[0] != thumbnail).any(axis=-1)) > 0.5 * thumbnail[..., 0].size
    changed = [np.count_nonzero(a != b) for a, b in itertools.pairwise(pictures)]
    assert sum(map(bool, changed)) >= 2  # finer tiles, then parts
    assert watcher.titles[0] == "Preview of a map at work: 0 of 3 parts final"
    assert "Preview of a map at work: 2 of 3 parts final" in watcher.titles
    with open_label_map(tmp_path / "map") as (read_rows, frame, legend):
        labels = thumbnails.sample_labels(read_rows, thumbnail, frame)
    exact = figures.tint(thumbnail, labels, legend.palette)
    rows = len(thumbnail) * 2048 // 2500  # of the parts in the last picture
    np.testing.assert_array_equal(pictures[-1][:rows], exact[:rows])
    assert (pictures[-1][rows:] != exact[rows:]).any()


def test_a_picture_of_parts_has_the_colors_of_the_map(tmp_path):
    labels = np.array([[0, 1], [EXCLUDED, 2]], np.uint8).repeat(200, 0).repeat(200, 1)
    photograph = np.full((400, 400, 3), 200, np.uint8)
    pale = np.zeros((400, 400), bool)
    pale[:, 300:] = True
    legend = slide_pictures.Legend(DATASET.classes, DATASET.palette)
    pictures = slide_pictures.SlidePictures(photograph, labels, 1.0, legend)
    slide_pictures.write_preview(tmp_path / "p.png", pictures, pale, ["one", "two"])
    shown = cut_out(read(tmp_path / "p.png"), photograph)
    tinted = figures.tint(photograph, labels, DATASET.palette)
    np.testing.assert_array_equal(shown[:, :300], tinted[:, :300])
    middle = (tinted.astype(int) + photograph)[:, 300:] // 2
    np.testing.assert_array_equal(shown[:, 300:], middle)


@pytest.mark.parametrize("stop_after", [3, 60])
def test_nothing_is_left_of_an_interrupted_slide(tall, without, tmp_path, monkeypatch, stop_after):
    """It is stopped among the coarse tiles, or when the first part is finished."""
    folder = tmp_path / "map"
    watcher = Watcher(folder, stop_after)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        watcher.install(patch)
        segment_by_color(tall, folder, **SHOWN, **{"preview.share": 0.05})
    assert watcher.pictures[-1] is not None
    assert [path.name for path in folder.iterdir()] == ["parts"]
    (folder / "preview.png").write_text("of a killed process")
    again = Watcher(folder)
    with monkeypatch.context() as patch:
        again.install(patch)
        summary = segment_by_color(tall, folder, **SHOWN, **{"preview.share": 0.05})
    assert not (folder / "preview.png").exists()
    for name in DETERMINISTIC:
        assert (folder / name).read_bytes() == (without / name).read_bytes()
    is_resumed = stop_after == 60
    assert (summary["tiles_of_last_start"] < summary["tiles"]) == is_resumed
    exact = -(-summary["tiles_of_last_start"] // 8)
    assert len(again.batches) == exact if is_resumed else len(again.batches) > exact
    assert (again.pictures[0] is not None) == is_resumed  # at once of the parts
    parts = 1 if is_resumed else 0
    assert again.titles[0] == f"Preview of a map at work: {parts} of 3 parts final"


@pytest.mark.parametrize("changes", [{"preview.min_tiles": 100_000}, {"preview.share": 0.0}])
def test_short_work_has_no_preview(tall, tmp_path, monkeypatch, capsys, changes):
    watcher = Watcher(tmp_path / "map")
    watcher.install(monkeypatch)
    segment_by_color(tall, tmp_path / "map", **{**SHOWN, **changes})
    assert all(picture is None for picture in watcher.pictures)
    assert "coarse" not in capsys.readouterr().out


def test_a_file_of_the_user_stays(tall, without, tmp_path):
    shutil.copytree(without, tmp_path / "map")
    (tmp_path / "map" / "preview.png").write_text("theirs")
    segment_by_color(tall, tmp_path / "map", **{**SHOWN, "stride": 48})
    assert (tmp_path / "map" / "preview.png").read_text() == "theirs"


@pytest.mark.parametrize("size", [(3000, 2000), (100, 6000), (40, 30)])
@pytest.mark.parametrize("share", [0.25, 0.02])
def test_tiles_are_few_and_all_over_the_slide(size, share):
    tiling = Tiling(64, 32)
    tissue = Tissue.everywhere(*size)
    total = len(tiling.place(size[0])) * len(tiling.place(size[1]))
    tiles = choose_tiles(tissue, tiling, share, total)
    assert len(tiles.places) <= share * total
    if total > 1 / share:
        assert len(tiles.places) >= share * total / 4
        least, most = tiles.places.min(axis=0), tiles.places.max(axis=0)
        assert (least <= 32 * tiles.every).all()
        assert (most + 64 + 32 * tiles.every >= size).all()
    assert len(np.unique(tiles.places, axis=0)) == len(tiles.places)
    grid = [set(tiling.place(length).tolist()) for length in size]
    assert all(x in grid[0] and y in grid[1] for x, y in tiles.places.tolist())
    assert (np.diff(tiles.reaches) <= 0).all()


def test_tiles_without_tissue_are_not_chosen():
    mask = np.zeros((10, 10), bool)
    mask[:5, :5] = True
    tissue, tiling = Tissue(mask, 3000, 3000), Tiling(64, 32)
    tiles = choose_tiles(tissue, tiling, 0.05, 9000)
    assert len(tiles.places) and (tiles.places < 1500).all()
    nothing = Tissue(np.zeros((10, 10), bool), 3000, 3000)
    assert not len(choose_tiles(nothing, tiling, 0.05, 0).places)


def test_a_tile_speaks_for_the_tissue_around_it():
    pixels = np.arange(5, 400, 10), np.arange(5, 600, 10)
    tissue = np.ones((40, 60), bool)
    tissue[:, 50:] = False
    coarse = CoarseMap(pixels, tissue, 3)
    probabilities = np.zeros((100, 100, 3), np.float32)
    probabilities[..., 1], probabilities[:20, :, 2] = 0.5, 0.9
    coarse.add_tile(400, 200, probabilities, 150)
    expected, guessed = np.full((40, 60), 3), np.zeros((40, 60), bool)
    expected[10:40, 30:50], guessed[10:40, 30:50] = 1, True
    expected[20:22, 40:50], guessed[20:30, 40:50] = 2, False
    np.testing.assert_array_equal(coarse.labels, expected)
    np.testing.assert_array_equal(coarse.is_guess, guessed)
    coarse.add_tile(250, 200, np.eye(3)[np.zeros((100, 100), int)], 75)
    assert (coarse.labels[18:32, 23:37] == 0).all()
    assert (coarse.labels[20:22, 40:50] == 2).all()
    coarse.add_part(Part(0, 0, 600, 250), np.full((250, 600), 3, np.uint8))
    assert (coarse.labels[:25] == 3).all() and not coarse.is_guess[:25].any()
    assert (coarse.labels[30:35, 38:50] == 1).all()
