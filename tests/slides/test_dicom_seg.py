"""DICOM segmentations, read by highdicom, and by pydicom with an assembly of the tiles here."""

import sys
from pathlib import Path

import numpy as np
import pytest

from data.synthetic_slides import draw_waves
from tests.slides.dicom_writer import write_dicom
from tests.slides.maps import DATASET, Map, draw_map
from wsss_jax.errors import InputError
from wsss_jax.slides.outputs import dicom_seg

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
MAP = draw_map(820, 740)  # of a slide of 1640 x 1480 pixels, two tiles in each direction
PATIENT = "Müller^Jörg"
MPP = 0.5


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a slide, the smaller level first; names in Latin-1, an origin of its own."""
    folder = tmp_path_factory.mktemp("dicom") / "d"
    image = draw_waves(1640, 1480)
    write_dicom(folder, [image, image[::2, ::2].copy()], MPP)
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName, header.PatientID, header.StudyDate = PATIENT, "7", "20200102"
        origin = header.TotalPixelMatrixOriginSequence[0]
        origin.XOffsetInSlideCoordinateSystem = 20.25
        origin.YOffsetInSlideCoordinateSystem = 40.5
        header.save_as(path)
    return sorted(folder.iterdir(), reverse=True)


def write(path: Path, files: list[Path], label_map: Map = MAP, networks: str = "a") -> Path:
    dicom_seg.write_dicom_seg(path, label_map.read_rows, label_map.frame, DATASET, files, networks)
    return path


def assemble(header: "pydicom.Dataset") -> np.ndarray:
    """The segments as masks, tile by tile: (segments, height, width)."""
    shape = header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns
    masks = np.zeros((len(header.SegmentSequence), *shape), bool)
    frames = header.pixel_array.reshape(-1, header.Rows, header.Columns)
    for pixels, groups in zip(frames, header.PerFrameFunctionalGroupsSequence, strict=True):
        place = groups.PlanePositionSlideSequence[0]
        top = place.RowPositionInTotalImagePixelMatrix - 1
        left = place.ColumnPositionInTotalImagePixelMatrix - 1
        segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        area = masks[segment - 1, top : top + header.Rows, left : left + header.Columns]
        area |= pixels[: area.shape[0], : area.shape[1]].astype(bool)
        assert not pixels[area.shape[0] :].any() and not pixels[:, area.shape[1] :].any()
    return masks


def test_segments_are_the_classes_of_the_map(slide, tmp_path):
    path = write(tmp_path / "s.dcm", slide)
    masks = assemble(pydicom.dcmread(path))
    np.testing.assert_array_equal(masks, [MAP.labels == value for value in range(4)])
    assert masks.sum(axis=(1, 2)).tolist() == MAP.counts
    segmentation = highdicom.seg.segread(path)
    matrix = segmentation.get_total_pixel_matrix(combine_segments=True)
    np.testing.assert_array_equal(matrix, np.array([1, 2, 3, 4, 0])[MAP.labels])
    assert segmentation.segmentation_type.value == "BINARY"
    assert segmentation.NumberOfFrames == 12  # three classes on four tiles; the fourth has none


def test_segments_have_names_colors_and_codes(slide, tmp_path):
    segmentation = highdicom.seg.segread(write(tmp_path / "s.dcm", slide))
    described = [segmentation.get_segment_description(number) for number in range(1, 5)]
    names = [each.segment_label for each in described]
    assert names == ["TE", '<script>alert("1")</script>', "Leukozyten µ/../", "TAS"]
    types = [each.segmented_property_type for each in described]
    assert [(each.value, each.scheme_designator) for each in types] == [
        ("108369006", "SCT"),  # neoplasm
        ("85756007", "SCT"),  # tissue
        ("6969002", "SCT"),  # lymphocytic tissue
        ("21793004", "SCT"),  # connective tissue
    ]
    for each, color in zip(described, DATASET.palette):
        value = highdicom.color.CIELabColor.from_dicom_value(each.RecommendedDisplayCIELabValue)
        assert np.abs(np.subtract(value.to_rgb(), color)).max() <= 2


def test_it_lies_on_the_slide_and_belongs_to_its_study(slide, tmp_path):
    header = pydicom.dcmread(write(tmp_path / "s.dcm", slide))
    source = pydicom.dcmread(slide[-1])
    assert source.TotalPixelMatrixColumns == 1640
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate"):
        assert header[name].value == source[name].value
    assert header.SeriesInstanceUID != source.SeriesInstanceUID
    assert str(header.PatientName) == PATIENT
    (series,) = header.ReferencedSeriesSequence
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
    # The corner of each tile, in millimeters, is that of the same pixel of level 0.
    measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == [2 * MPP / 1000] * 2
    slide_pixel = highdicom.spatial.PixelToReferenceTransformer(
        [20.25, 40.5, 0], source.ImageOrientationSlide, [MPP / 1000] * 2
    )
    places = [
        groups.PlanePositionSlideSequence[0] for groups in header.PerFrameFunctionalGroupsSequence
    ]
    for place in places:
        column = place.ColumnPositionInTotalImagePixelMatrix - 1
        row = place.RowPositionInTotalImagePixelMatrix - 1
        (expected,) = slide_pixel(np.array([[2 * column, 2 * row]]))
        x, y = place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem
        np.testing.assert_allclose([x, y], expected[:2], atol=1e-9)
    assert len({place.YOffsetInSlideCoordinateSystem for place in places}) == 2


def test_the_same_map_gives_the_same_bytes_and_another_one_other_identifiers(slide, tmp_path):
    first = write(tmp_path / "a.dcm", slide)
    assert write(tmp_path / "b.dcm", slide[::-1]).read_bytes() == first.read_bytes()
    others = [
        write(tmp_path / "c.dcm", slide, networks="b"),
        write(tmp_path / "d.dcm", slide, draw_map(820, 740, seed=1)),
    ]
    headers = [pydicom.dcmread(path) for path in (first, *others)]
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        identifiers = {header[name].value for header in headers}
        assert len(identifiers) == 3 and all(len(each) <= 64 for each in identifiers)
    assert headers[0].ContentDate == "20200102"  # of the study


def test_a_map_without_classes_is_an_empty_segmentation(slide, tmp_path):
    nothing = Map(np.full((740, 820), 4, np.uint8))
    assert not assemble(pydicom.dcmread(write(tmp_path / "s.dcm", slide, nothing))).any()


def test_slides_that_it_cannot_be_made_of_are_refused(slide, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no image of 100 x 100 pixels is among the files"):
        write(tmp_path / "s.dcm", slide, Map(np.zeros((50, 50), np.uint8)))
    broken = []
    for path in slide:
        header = pydicom.dcmread(path)
        del header.ImageOrientationSlide
        header.save_as(tmp_path / path.name)
        broken.append(tmp_path / path.name)
    with pytest.raises(InputError, match=r"level0\.dcm: its header lacks what .*dicom_seg=False"):
        write(tmp_path / "s.dcm", broken)
    (tmp_path / "text.dcm").write_text("no DICOM" * 100)
    with pytest.raises(InputError, match=r"text\.dcm: not DICOM with a header"):
        write(tmp_path / "s.dcm", [tmp_path / "text.dcm"])
    monkeypatch.setattr(dicom_seg, "MOST_BYTES", 10_000)
    with pytest.raises(InputError, match=r"over 4 GiB, which DICOM does not allow"):
        write(tmp_path / "s.dcm", slide)
    assert not (tmp_path / "s.dcm").exists()


def test_without_highdicom_the_remedy_is_named(monkeypatch):
    dicom_seg.check_installed()
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"config\.dicom_seg: .*: pip install highdicom"):
        dicom_seg.check_installed()
