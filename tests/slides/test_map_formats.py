"""The files of a slide for other programs: which are written, kept, written again, removed."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from affine import Affine
from rasterio import features

from data.synthetic import DATASET
from data.synthetic_slides import draw_section, iterate_tiles
from tests.slides.dicom_writer import write_dicom
from tests.slides.qupath_reader import read_annotations
from tests.slides.slide_runs import BY_COLOR, MPP, SIZE, read_json, read_times, segment_by_color
from wsss_jax.slides.outputs import results

PLAIN, PACKED = "tissue.geojson", "tissue.geojson.gz"
ALL = {"ome_zarr": True, "geoparquet": True, "dicom_seg": True, "geojson.file": "both"}


def segment(slide: Path, folder: Path, **changes: object) -> dict:
    return segment_by_color(slide, folder, **BY_COLOR, **changes)


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def count_rewritten(before: dict[str, int], folder: Path) -> set[str]:
    """Files that were written again, besides the report and the summary."""
    after = read_times(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    return changed - {"report.html", "slide.json"}


@pytest.fixture(scope="module")
def plain(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with the default files."""
    folder = tmp_path_factory.mktemp("plain") / "map"
    segment(slide, folder)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "map"))


@pytest.fixture(scope="module")
def every(slide: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with all files."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("every") / "map"))
    segment(slide, folder, **ALL)
    return folder


def test_further_files_are_added_without_new_tiles(slide, plain, folder):
    before = read_times(folder)
    summary = segment(slide, folder, **ALL)
    assert summary["tiles_of_last_start"] == 0
    added = {PACKED, "tissue.parquet", "label_map.ome.zarr"}  # the slide is not DICOM
    assert list_names(folder) - list_names(plain) == added
    assert count_rewritten(before, folder) == {PACKED, "tissue.parquet"}
    assert added <= set(summary["files"]) and added <= summary["sizes"].keys()
    for name in added:
        assert f">{name}</a>" in (folder / "report.html").read_text()
    assert gzip.decompress((folder / PACKED).read_bytes()) == (folder / PLAIN).read_bytes()
    times = read_times(folder)
    segment(slide, folder, **ALL)
    assert read_times(folder) == times


def test_settings_of_the_default_files_stay_those_of_earlier_versions(plain):
    output = read_json(plain / "slide.json")["settings"]["output"]
    assert output["geojson"] == {"min_area": 0.0, "simplify": 0.0}
    assert not output.keys() & {"geojson_file", "ome_zarr", "geoparquet", "dicom_seg"}


def test_compressed_polygons_beside_or_instead_of_plain_ones(slide, folder, capsys):
    before = (folder / PLAIN).read_bytes()
    segment(slide, folder, **{"geojson.file": "gzip"})
    assert "was finished with other geojson_file: done again" in capsys.readouterr().out
    assert not (folder / PLAIN).exists()
    packed = (folder / PACKED).read_bytes()
    assert gzip.decompress(packed) == before
    segment(slide, folder, **{"geojson.file": "both"})
    assert (folder / PLAIN).read_bytes() == before and (folder / PACKED).read_bytes() == packed
    segment(slide, folder)
    assert (folder / PLAIN).read_bytes() == before and not (folder / PACKED).exists()
    other = segment(slide, folder, **{"geojson.file": "gzip", "geojson.min_area": 400.0})
    assert len(gzip.decompress((folder / PACKED).read_bytes())) < len(before)
    assert other["pixels_in_polygons"] != read_json(folder / "slide.json")["areas"]


def test_unwanted_files_are_removed_and_damaged_ones_written_again(slide, plain, every):
    folder = every
    shard = folder / "label_map.ome.zarr" / "0" / "c" / "0" / "0"
    whole = shard.read_bytes()
    damages = [
        (lambda: shard.unlink(), set()),
        (lambda: shutil.rmtree(folder / "label_map.ome.zarr"), set()),
        (lambda: (folder / "tissue.parquet").write_bytes(b"PAR1"), {"tissue.parquet"}),
        (lambda: (folder / PACKED).unlink(), {PACKED}),
    ]
    for damage, rewritten in damages:
        before = read_times(folder)
        damage()
        segment(slide, folder, **ALL)
        assert count_rewritten(before, folder) == rewritten
        assert shard.read_bytes() == whole
    before = read_times(folder)
    segment(slide, folder)
    assert list_names(folder) == list_names(plain) and count_rewritten(before, folder) == set()
    (folder / "label_map.ome.zarr").mkdir()  # somebody else's is not listed: it stays
    segment(slide, folder, picture=300)
    assert (folder / "label_map.ome.zarr").is_dir()
    (folder / "label_map.ome.zarr").rmdir()
    segment(slide, folder, **ALL)


def test_other_files_of_the_same_map_have_the_same_bytes(slide, plain, every, tmp_path):
    """After all the repairs of the test before, and in a folder of its own."""
    segment(slide, tmp_path / "map", **ALL)

    def read_files(folder: Path) -> dict[str, bytes]:
        names = (PLAIN, PACKED, "tissue.parquet", "label_map.ome.tif", "areas.csv")
        files = [folder / name for name in names]
        files += [path for path in (folder / "label_map.ome.zarr").rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    segment(slide, every, **ALL)
    assert read_files(tmp_path / "map") == read_files(every)
    assert (plain / PLAIN).read_bytes() == (every / PLAIN).read_bytes()


def test_every_file_has_the_areas_of_the_label_map(tmp_path):
    """Of a DICOM slide, whose segmentation is among them."""
    zarr, fastparquet = pytest.importorskip("zarr"), pytest.importorskip("fastparquet")
    highdicom = pytest.importorskip("highdicom")
    image = np.zeros((-(-SIZE[1] // 256) * 256, -(-SIZE[0] // 256) * 256, 3), np.uint8)
    across = image.shape[1] // 256
    for number, tile in enumerate(iterate_tiles(draw_section(*SIZE))):
        top, left = 256 * (number // across), 256 * (number % across)
        image[top : top + 256, left : left + 256] = tile
    image = image[: SIZE[1], : SIZE[0]]
    write_dicom(tmp_path / "d", [image, image[::2, ::2].copy()], MPP)
    folder = tmp_path / "map"
    summary = segment(tmp_path / "d", folder, **ALL)
    labels = tifffile.imread(folder / "label_map.ome.tif")
    counts = [int(np.count_nonzero(labels == value)) for value in range(4)]
    assert min(counts[:3]) > 0 and [row["pixels"] for row in summary["areas"][:4]] == counts

    painted = np.full(labels.shape, 4, np.uint8)
    for annotation in read_annotations(gzip.decompress((folder / PACKED).read_bytes()).decode()):
        value = DATASET.classes.index(annotation.class_name)
        assert annotation.color == DATASET.palette[value]
        # A pixel of the map is two of the slide wide.
        inside = features.rasterize([annotation.shape], labels.shape, transform=Affine.scale(2))
        painted[inside == 1] = value
    np.testing.assert_array_equal(painted, labels)

    table = fastparquet.ParquetFile(str(folder / "tissue.parquet")).to_pandas()
    for value, row in enumerate(summary["areas"][:4]):
        rows = table[table["class"] == row["class"]]
        assert rows["pixels"].sum() == counts[value]
        assert rows["area_mm2"].sum() == pytest.approx(row["mm2"])
    array = zarr.open_group(folder / "label_map.ome.zarr", mode="r")["0"][:]
    np.testing.assert_array_equal(array, np.array([1, 2, 3, 4, 0])[labels])
    segmentation = highdicom.seg.segread(folder / "label_map.dcm")
    matrix = segmentation.get_total_pixel_matrix(combine_segments=True)
    np.testing.assert_array_equal(matrix, array)
    assert "label_map.dcm" in results.read_summary(folder)["files"]
    algorithm = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == "phase2 by color"
    segment(tmp_path / "d", folder)
    assert not (folder / "label_map.dcm").exists()
