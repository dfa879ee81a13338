"""OME-Zarr is written by tensorstore and read by zarr; yaozarrs knows the rules."""

import errno
import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.slides.maps import DATASET, Map, draw_map
from wsss_jax.errors import InputError
from wsss_jax.files import UNFINISHED, measure_size
from wsss_jax.slides.outputs import ome_zarr

zarr = pytest.importorskip("zarr")
yaozarrs = pytest.importorskip("yaozarrs")
VALUES = np.array([1, 2, 3, 4, 0])  # of the classes, then of none
WIDE = draw_map(9001, 1100)  # more than a shard in both directions


def write(folder: Path, label_map: Map) -> Path:
    path = folder / "label_map.ome.zarr"
    name = "a <b>slide</b>"
    ome_zarr.write_ome_zarr(path, label_map.read_rows, label_map.frame, label_map.legend, name)
    return path


def read_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("zarr"), WIDE)


def test_another_reader_finds_the_map_and_its_levels(wide):
    group = zarr.open_group(wide, mode="r")
    assert sorted(group.array_keys()) == ["0", "1", "2", "3", "4", "5"]
    for level in range(6):
        array, step = group[str(level)], 2**level
        expected = VALUES[WIDE.labels[::step, ::step]]
        np.testing.assert_array_equal(array[:], expected)
        assert array.dtype == np.uint8 and array.metadata.dimension_names == ("y", "x")
    counts = np.bincount(group["0"][:].ravel(), minlength=5)
    assert counts[1:].tolist() == WIDE.counts and counts[4] == 0


def test_metadata_are_valid_and_say_what_the_values_are(wide):
    yaozarrs.validate_zarr_store(str(wide))
    ome = zarr.open_group(wide, mode="r").attrs["ome"]
    (image,) = ome["multiscales"]
    assert ome["version"] == "0.5" and image["name"] == "a <b>slide</b>"
    assert [axis["unit"] for axis in image["axes"]] == ["micrometer"] * 2
    scales = [each["coordinateTransformations"][0]["scale"] for each in image["datasets"]]
    assert scales == [[2.0**level] * 2 for level in range(6)]  # micrometers per pixel
    label = yaozarrs.v05.LabelImage.model_validate(ome).image_label
    assert {each.label_value: tuple(each.rgba) for each in label.colors} == {
        value: (*color, 255) for value, color in enumerate(DATASET.palette[:4], start=1)
    }
    names = {each["label-value"]: each["class"] for each in ome["image-label"]["properties"]}
    assert names == dict(enumerate(DATASET.classes, start=1))


def test_the_same_map_gives_the_same_few_files(wide, tmp_path):
    assert read_bytes(write(tmp_path, WIDE)) == read_bytes(wide)
    # Three bands of two shards on level 0, less on the others; glass needs none.
    assert len(read_bytes(wide)) < 30
    glass = write(tmp_path, Map(np.full((600, 600), 4, np.uint8)))
    assert set(read_bytes(glass)) == {"zarr.json", "0/zarr.json", "1/zarr.json"}
    assert (zarr.open_group(glass, mode="r")["0"][:] == 0).all()


def test_an_earlier_one_is_replaced_but_nobody_elses(tmp_path):
    first, second = draw_map(60, 50), draw_map(600, 50, seed=1)
    before = read_bytes(write(tmp_path, first))
    path = write(tmp_path, second)
    assert zarr.open_group(path, mode="r")["1"].shape == (25, 300)
    assert read_bytes(write(tmp_path, first)) == before
    assert {each.name for each in tmp_path.iterdir()} == {path.name}
    assert measure_size(path) == sum(map(len, before.values()))
    for content in ("", json.dumps({"zarr_format": 3, "node_type": "group"})):
        (path / "zarr.json").write_text(content)
        with pytest.raises(InputError, match=r"zarr: not written by this program: move it"):
            write(tmp_path, first)
        assert (path / "zarr.json").read_text() == content


def test_what_prevents_writing_is_an_error_of_the_system(tmp_path):
    noise = Map(np.random.default_rng(0).integers(0, 4, (600, 600)).astype(np.uint8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        with pytest.raises(OSError) as failure:
            write(tmp_path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert failure.value.errno == errno.EFBIG
    assert not [each for each in tmp_path.iterdir() if not each.name.startswith(UNFINISHED)]
