"""The label map of a DICOM slide as a DICOM segmentation, beside the slide in its study.

DICOM PS3.3, A.51, "Segmentation": binary, in tiles, a segment for each class. highdicom, which is
optional, makes the header from that of the slide; the frames are written here, because highdicom
takes the whole map into memory.
"""

import hashlib
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.dataset import Dataset
from wsss_jax import __version__
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.report.colors import make_legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.pyramid import TILE
from wsss_jax.slides.outputs.regions import ReadRows

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

INSTALL = "pip install highdicom"
FRAME_BYTES = TILE * TILE // 8  # a bit for each pixel
MOST_BYTES = 2**32 - 2  # of the pixels of a file whose frames are not compressed
_LONGEST_LABEL = 64  # characters of a text of the kind LO
_MAKER = "wsss_jax"
# Role of a class -> category and type of what its segment shows: codes of SNOMED CT, from the
# context groups 7150, 7151 and 7166 of DICOM PS3.16, and their meanings.
_TISSUE = ("85756007", "Tissue")
_CONCEPTS = {
    "tumor": (("49755003", "Morphologically Abnormal Structure"), ("108369006", "Neoplasm")),
    "stroma": (_TISSUE, ("21793004", "Connective tissue")),
    "lymphocytes": (_TISSUE, ("6969002", "Lymphocytic tissue structure")),
}
# What every slide must have, if only as an empty value, but some lack (DICOM type 2).
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_NO_DATE, _NO_TIME = "19000101", "000000"  # where the slide has none


class _Frame(NamedTuple):
    """A tile of one segment: its value in the map, its row and column of tiles."""

    value: int
    row: int
    column: int


def check_installed() -> None:
    """Refuses to begin work that needs highdicom without it.

    Raises:
      InputError: it is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"config.dicom_seg: needs a package that is not installed: {INSTALL}"
        ) from error


def write_dicom_seg(
    path: Path | str,
    read_rows: ReadRows,
    frame: MapFrame,
    dataset: Dataset,
    slide_files: Sequence[Path],
    networks: str,
) -> None:
    """Writes the classes of a map as segments of a DICOM segmentation, atomically.

    Segment k + 1 is the class k, with its name, its color and, where `dataset.roles` says what it
    is, its code. It has the slide's patient, study, frame of reference and origin, and refers to
    level 0; its pixels are those of the map. Tiles without a class are left out (TILED_SPARSE). The
    same map of the same slide always gives the same bytes: the identifiers follow from them, and
    the dates are those of the slide.

    Args:
      path: ends in `.dcm`.
      read_rows: reads the map of label values 0..C.
      frame: of the map.
      dataset: has the classes.
      slide_files: of the slide.
      networks: text that tells networks apart, for the algorithm's version.

    Raises:
      InputError: highdicom is not installed, the headers of the slide lack something, or the pixels
        would be over 4 GiB.
    """
    check_installed()  # other machines of a cluster may lack it
    source = _read_level0(slide_files, frame)
    frames, digest = _find_frames(read_rows, frame, dataset.num_classes)
    if len(frames) * FRAME_BYTES > MOST_BYTES:
        raise InputError(
            f"{slide_files[0]}: its segmentation would have over 4 GiB, which DICOM does not "
            "allow; set --config.dicom_seg=False, or a coarser --config.mpp"
        )
    origin = (source.SOPInstanceUID, frame, dataset, networks, __version__)
    digest.update(repr(origin).encode())
    header = _make_header(source, frame, dataset, networks, digest.hexdigest())
    header.NumberOfFrames = len(frames)
    template = header.PerFrameFunctionalGroupsSequence[0]
    del header.PerFrameFunctionalGroupsSequence, header.PixelData
    with atomic_path(path) as temporary:
        header.save_as(temporary, enforce_file_format=True)
        with temporary.open("ab") as file:
            _write_places(file, frames, template, header)
            # The length is even: a frame has 32 KiB.
            size = len(frames) * FRAME_BYTES
            file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, size))
            _write_pixels(file, frames, read_rows, frame)


def _read_level0(files: Sequence[Path], frame: MapFrame) -> "Header":
    """Reads the header of level 0, or of the first file of it."""
    import pydicom

    try:
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    except pydicom.errors.InvalidDicomError as error:
        raise InputError(
            f"{files[0]}: not DICOM with a header; copy the slide again, or set "
            "--config.dicom_seg=False"
        ) from error
    volumes = [each for each in headers if "VOLUME" in each.get("ImageType", [])]
    width, height = frame.slide_size
    matching = [
        each
        for each in volumes
        if each.get("TotalPixelMatrixColumns") == width
        and each.get("TotalPixelMatrixRows") == height
    ]
    if not matching:
        raise InputError(
            f"{files[0]}: no image of {width} x {height} pixels is among the files of the slide; "
            "set --config.dicom_seg=False"
        )
    found = matching[0]
    found.decode()
    for name in _MAY_BE_EMPTY:
        if name not in found:
            setattr(found, name, "")
    return found


def _find_frames(
    read_rows: ReadRows, frame: MapFrame, excluded: int
) -> "tuple[list[_Frame], hashlib._Hash]":
    """Finds the tiles with pixels of each class, and a digest of the map."""
    frames = []
    digest = hashlib.sha256()
    for row, y0 in enumerate(range(0, frame.height, TILE)):
        labels = read_rows(y0, min(y0 + TILE, frame.height), 1)
        digest.update(np.ascontiguousarray(labels))
        for column, x0 in enumerate(range(0, frame.width, TILE)):
            values = np.unique(labels[:, x0 : x0 + TILE]).tolist()
            frames += [_Frame(value, row, column) for value in values if value != excluded]
    return frames or [_Frame(0, 0, 0)], digest  # there must be one, if only an empty one


def _make_header(
    source: "Header", frame: MapFrame, dataset: Dataset, networks: str, digest: str
) -> "Header":
    """Makes a segmentation of one tile, to be extended; its identifiers follow from `digest`."""
    import highdicom

    def make_uid(name: str) -> str:
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'{_MAKER}/{name}/{digest}').int}"

    try:
        measures = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        down, across = map(float, measures.PixelSpacing)
        header = highdicom.seg.Segmentation(
            source_images=[source],
            pixel_array=np.ones((1, TILE, TILE), np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=_describe_segments(dataset, networks),
            series_instance_uid=make_uid("series"),
            series_number=1,
            sop_instance_uid=make_uid("instance"),
            instance_number=1,
            manufacturer=_MAKER,
            manufacturer_model_name=_MAKER,
            software_versions=__version__,
            device_serial_number="0",
            pixel_measures=highdicom.PixelMeasuresSequence(
                pixel_spacing=(down * frame.scale[1], across * frame.scale[0]),
                slice_thickness=float(measures.get("SliceThickness") or 1e-3),
            ),
            dimension_organization_type="TILED_SPARSE",
            tile_pixel_array=True,
            tile_size=(TILE, TILE),
            content_description="tissue classes; research use only",
            content_label="TISSUE",
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{source.filename}: its header lacks what a segmentation needs ({reason}); set "
            "--config.dicom_seg=False"
        ) from error
    header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = frame.width, frame.height
    for item in [*header.DimensionOrganizationSequence, *header.DimensionIndexSequence]:
        item.DimensionOrganizationUID = make_uid("dimensions")
    for kind, missing in (("Date", _NO_DATE), ("Time", _NO_TIME)):
        value = source.get(f"Content{kind}") or source.get(f"Study{kind}") or missing
        setattr(header, f"Content{kind}", value)
        setattr(header, f"InstanceCreation{kind}", value)
    for item in header.get("ContributingEquipmentSequence", []):
        del item.ContributionDateTime
    return header


def _describe_segments(dataset: Dataset, networks: str) -> list[Any]:
    import highdicom
    from pydicom.sr.coding import Code

    roles = {name: role for role, name in dataset.roles.items()}
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_MAKER,
        family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=networks[:_LONGEST_LABEL],
    )
    legend = make_legend(dataset, "dataset")
    descriptions = []
    for number, (name, color) in enumerate(zip(legend.names, legend.palette), start=1):
        category, kind = (
            Code(value, "SCT", meaning)
            for value, meaning in _CONCEPTS.get(roles.get(name, ""), (_TISSUE, _TISSUE))
        )
        descriptions.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                # A backslash would separate two values.
                segment_label=name.replace("\\", "/")[:_LONGEST_LABEL].strip(),
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                display_color=highdicom.color.CIELabColor.from_rgb(*color),
            )
        )
    return descriptions


def _write_places(
    file: IO[bytes], frames: Sequence[_Frame], item: "Header", header: "Header"
) -> None:
    """Writes where each frame lies and which segment it is of, changing `item` for each."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset
    from pydicom.valuerep import DSfloat

    rows = {row: rank for rank, row in enumerate(sorted({each.row for each in frames}), 1)}
    columns = {
        column: rank for rank, column in enumerate(sorted({each.column for each in frames}), 1)
    }
    spacing = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    down, across = map(float, spacing)
    orientation = np.array(header.ImageOrientationSlide, np.float64)
    place = item.PlanePositionSlideSequence[0]
    origin = np.array([place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem])
    origin = origin.astype(np.float64)
    file.write(struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF))
    for value, row, column in frames:
        item.FrameContentSequence[0].DimensionIndexValues = [value + 1, rows[row], columns[column]]
        item.SegmentIdentificationSequence[0].ReferencedSegmentNumber = value + 1
        place.RowPositionInTotalImagePixelMatrix = row * TILE + 1
        place.ColumnPositionInTotalImagePixelMatrix = column * TILE + 1
        x, y = (
            origin
            + orientation[:2] * (column * TILE * across)
            + orientation[3:5] * (row * TILE * down)
        ).tolist()
        place.XOffsetInSlideCoordinateSystem = DSfloat(x, auto_format=True)
        place.YOffsetInSlideCoordinateSystem = DSfloat(y, auto_format=True)
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_dataset(buffer, item)
        content = buffer.getvalue()
        file.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content)
    file.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))


def _write_pixels(
    file: IO[bytes], frames: Sequence[_Frame], read_rows: ReadRows, frame: MapFrame
) -> None:
    """Writes the pixels of each frame as bits; beyond the map they are 0."""
    row_before = -1
    for value, row, column in frames:
        if row != row_before:
            y0 = row * TILE
            labels = read_rows(y0, min(y0 + TILE, frame.height), 1)
            row_before = row
        tile = labels[:, column * TILE : (column + 1) * TILE] == value
        bits = np.zeros((TILE, TILE), bool)
        bits[: tile.shape[0], : tile.shape[1]] = tile
        file.write(np.packbits(bits, bitorder="little").tobytes())
