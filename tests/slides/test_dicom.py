"""DICOM slides over which OpenSlide would end the process, or which it would show wrongly."""

import copy
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from data.synthetic_slides import draw_waves
from tests.slides.dicom_writer import write_dicom
from wsss_jax.errors import InputError
from wsss_jax.slides.reading.slide import open_slide

pydicom = pytest.importorskip("pydicom")
WAVES = draw_waves(640, 480)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """level0.dcm and level1.dcm of a slide."""
    folder = tmp_path_factory.mktemp("dicom") / "d"
    write_dicom(folder, [WAVES, WAVES[::2, ::2].copy()], 0.5)
    return folder


@pytest.fixture
def folder(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the slide; a test fails, instead of ending the process, if OpenSlide opens it."""

    def refuse(path: str) -> None:
        raise AssertionError(f"OpenSlide was asked to open {path}")

    monkeypatch.setattr("openslide.OpenSlide", refuse)
    monkeypatch.setattr(refuse, "detect_format", lambda _: "dicom", raising=False)
    return Path(shutil.copytree(intact, tmp_path / "d"))


@pytest.mark.parametrize("name", ["level1.dcm", "level1", "level1.bak", ".level1"])
def test_damaged_files_are_refused_under_any_name(folder, name):
    data = bytearray((folder / "level1.dcm").read_bytes())
    (folder / "level1.dcm").unlink()
    at = data.index(b"\xe0\x7f\x10\x00") + 20
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFF0)
    (folder / name).write_bytes(data)
    for path in (folder, folder / "level0.dcm"):
        with pytest.raises(InputError, match=rf"{name}: its table of frames is damaged; copy the"):
            open_slide(path)


def _frames(dataset: "pydicom.Dataset") -> list[bytes]:
    count = int(dataset.NumberOfFrames)
    return list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count))


@pytest.mark.parametrize("damage", ["byte", "short"])
def test_damaged_extended_tables_of_frames_are_refused(folder, damage):
    path = folder / "level0.dcm"
    dataset = pydicom.dcmread(path)
    data, table, lengths = pydicom.encaps.encapsulate_extended(_frames(dataset))
    dataset.PixelData, dataset.ExtendedOffsetTableLengths = data, lengths
    dataset["PixelData"].is_undefined_length = True
    dataset.ExtendedOffsetTable = (
        table[:5] + b"\x7f" + table[6:] if damage == "byte" else table[:-8]
    )
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"level0\.dcm: its table of frames is damaged; copy"):
        open_slide(folder)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_optical_paths_are_not_colors(folder, counted, undefined):
    path = folder / "level0.dcm"
    dataset = pydicom.dcmread(path)
    other = copy.deepcopy(dataset.OpticalPathSequence[0])
    other.OpticalPathIdentifier = "0" if counted else "1"
    dataset.OpticalPathSequence.append(other)
    dataset["OpticalPathSequence"].is_undefined_length = undefined
    for item in dataset.OpticalPathSequence:
        item.is_undefined_length_sequence_item = undefined
    if counted:
        dataset.NumberOfOpticalPaths = 2
    else:
        del dataset.NumberOfOpticalPaths
    frames = 2 * _frames(dataset)
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = pydicom.encaps.encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"level0\.dcm: 2 optical paths instead of colors; save"):
        open_slide(folder)


def test_intact_tables_open_and_foreign_levels_are_left_out(intact, tmp_path):
    folder = Path(shutil.copytree(intact, tmp_path / "d"))
    dataset = pydicom.dcmread(folder / "level0.dcm")
    data, table, lengths = pydicom.encaps.encapsulate_extended(_frames(dataset))
    dataset.PixelData, dataset.ExtendedOffsetTableLengths = data, lengths
    dataset["PixelData"].is_undefined_length = True
    dataset.ExtendedOffsetTable = table
    dataset.save_as(folder / "level0.dcm")
    slide = open_slide(folder)
    assert [level.downsample for level in slide.levels] == [1, 2] and not slide.warnings
    write_dicom(tmp_path / "other", [255 - WAVES, 255 - WAVES[::2, ::2]], 0.5)
    other = pydicom.dcmread(tmp_path / "other" / "level1.dcm")
    other.SeriesInstanceUID = dataset.SeriesInstanceUID
    other.save_as(folder / "level1.dcm")
    slide = open_slide(folder)
    assert [level.downsample for level in slide.levels] == [1]
    assert "shows another picture and is left out" in slide.warnings[0]
    assert np.abs(slide.read(0, 0, 0, 640, 480).astype(int) - WAVES).mean() < 2
