"""Writes slides for tests and benchmarks; pyramids of any size in little memory."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import tifffile

TILE = 256
TileAt = Callable[[int, int], np.ndarray]
Style = Literal["aperio", "generic", "ome"]


def write_pyramid(
    path: Path,
    width: int,
    height: int,
    tile_at: TileAt,
    mpp: float | None,
    levels: Sequence[int] = (1, 4),
    style: Style = "aperio",
    compression: str = "jpeg",
) -> None:
    """Writes a tiled pyramid, tile by tile.

    Args:
      path: the file; OpenSlide wants .svs or .tif.
      width, height: of level 0, in pixels.
      tile_at: (x, y) of level 0, multiples of 256 -> (256, 256, 3) uint8; called once for each
        level, in rows.
      mpp: micrometers per pixel of level 0; None leaves it out.
      levels: downsample of each level, powers of two up to 256. A rest of columns or rows is
        dropped, as scanners do: halves of 4443 are 2221.
      style: "aperio", which OpenSlide opens with a power of 20; "generic", whose mpp is in the
        resolution tags; "ome", whose lower levels are SubIFDs.
      compression: "jpeg" (quality 85) or a lossless one such as "deflate".
    """
    pages = [
        (width // factor, height // factor, _reduced(tile_at, width, height, factor))
        for factor in levels
    ]
    _write(path, pages, mpp, style, compression)


def write_arrays(
    path: Path,
    arrays: Sequence[np.ndarray],
    mpp: float | None,
    style: Style = "aperio",
    compression: str = "deflate",
) -> None:
    """The same from one (h, w, 3) uint8 array a level, of any sizes."""
    pages = []
    for array in arrays:
        height, width = array.shape[:2]
        pages.append((width, height, _reduced(tiles_of(array), width, height, 1)))
    _write(path, pages, mpp, style, compression)


def write_dicom(folder: Path, arrays: Sequence[np.ndarray], mpp: float) -> None:
    """Writes level0.dcm, level1.dcm, ... of one slide, JPEG, with what viewers insist on.

    Args:
      folder: is made.
      arrays: (h, w, 3) uint8, one for each level.
      mpp: micrometers per pixel of level 0.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    def item(**values: object) -> Dataset:
        dataset = Dataset()
        for name, value in values.items():
            setattr(dataset, name, value)
        return dataset

    folder.mkdir()
    shared = {
        f"{name}UID": generate_uid()
        for name in ("StudyInstance", "SeriesInstance", "FrameOfReference", "Pyramid")
    }
    for index, array in enumerate(arrays):
        height, width = array.shape[:2]
        frames = [
            cv2.imencode(".jpg", tile[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
            for tile in _reduced(tiles_of(array), width, height, 1)
        ]
        kind = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
        kind = kind if index else ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        spacing = mpp * arrays[0].shape[1] / width / 1000
        identifier = generate_uid()
        dataset = item(
            **shared,
            SOPClassUID=VLWholeSlideMicroscopyImageStorage,
            SOPInstanceUID=identifier,
            Modality="SM",
            ImageType=kind,
            InstanceNumber=index + 1,
            DimensionOrganizationType="TILED_FULL",
            TotalPixelMatrixColumns=width,
            TotalPixelMatrixRows=height,
            TotalPixelMatrixFocalPlanes=1,
            NumberOfOpticalPaths=1,
            Rows=TILE,
            Columns=TILE,
            NumberOfFrames=len(frames),
            SamplesPerPixel=3,
            PhotometricInterpretation="YBR_FULL_422",
            PlanarConfiguration=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            ImagedVolumeWidth=width * spacing,
            ImagedVolumeHeight=height * spacing,
            ImagedVolumeDepth=0.001,
            ImageOrientationSlide=[0, -1, 0, -1, 0, 0],
            TotalPixelMatrixOriginSequence=[
                item(XOffsetInSlideCoordinateSystem=0.0, YOffsetInSlideCoordinateSystem=0.0)
            ],
            OpticalPathSequence=[item(OpticalPathIdentifier="0", ObjectiveLensPower="20")],
            SharedFunctionalGroupsSequence=[
                item(
                    PixelMeasuresSequence=[
                        item(PixelSpacing=[spacing, spacing], SliceThickness=0.001)
                    ],
                    WholeSlideMicroscopyImageFrameTypeSequence=[item(FrameType=kind)],
                )
            ],
            PixelData=encapsulate(frames),
        )
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = identifier
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.save_as(folder / f"level{index}.dcm", enforce_file_format=True)


def tiles_of(array: np.ndarray) -> TileAt:
    """`tile_at` of an (h, w, 3) uint8 array; what lies beyond it is white."""

    def tile_at(x: int, y: int) -> np.ndarray:
        tile = np.full((TILE, TILE, 3), 255, np.uint8)
        part = array[y : y + TILE, x : x + TILE]
        tile[: part.shape[0], : part.shape[1]] = part
        return tile

    return tile_at


def drawn_tissue(width: int, height: int) -> TileAt:
    """`tile_at` of a slide with one oval section, grained like H&E, on glass; about 60 % tissue.

    Tiles repeat, so that drawing costs less than compressing.
    """
    rng = np.random.default_rng(0)
    eosin, hematoxylin = np.float32([222, 160, 198]), np.float32([96, 60, 132])
    grains = []
    for sigma in np.linspace(1.5, 4, 16):
        grain = cv2.GaussianBlur(rng.normal(size=(TILE, TILE)), (0, 0), sigma)
        share = np.clip(grain / grain.std() * 0.3 + 0.3, 0, 1)[..., None]
        grains.append((eosin * (1 - share) + hematoxylin * share).astype(np.uint8))
    glass = np.full((TILE, TILE, 3), 244, np.uint8)

    def tile_at(x: int, y: int) -> np.ndarray:
        columns = (np.arange(x, x + TILE) / width - 0.5) / 0.45
        rows = (np.arange(y, y + TILE) / height - 0.5) / 0.42
        inside = columns**2 + rows[:, None] ** 2 < 1
        grain = grains[(x // TILE + 5 * (y // TILE)) % len(grains)]
        return grain if inside.all() else np.where(inside[..., None], grain, glass)

    return tile_at


def smooth(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 of slow waves, another in each channel, that any filter keeps."""
    x, y = np.arange(width), np.arange(height)[:, None]
    waves = [np.sin(x / 60 + phase) * np.cos(y / 70 - phase) for phase in (0, 1, 2)]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def _reduced(tile_at: TileAt, width: int, height: int, factor: int) -> Iterator[np.ndarray]:
    """The tiles, row by row, of the level that is `factor` times smaller."""
    part = TILE // factor
    for y in range(0, height // factor, TILE):
        for x in range(0, width // factor, TILE):
            tile = np.full((TILE, TILE, 3), 255, np.uint8)
            for top in range(0, TILE, part):
                for left in range(0, TILE, part):
                    corner = (x + left) * factor, (y + top) * factor
                    if corner[0] < width and corner[1] < height:
                        small = cv2.resize(
                            tile_at(*corner), (part, part), interpolation=cv2.INTER_AREA
                        )
                        tile[top : top + part, left : left + part] = small
            yield tile


def _write(
    path: Path,
    pages: Sequence[tuple[int, int, Iterator[np.ndarray]]],
    mpp: float | None,
    style: Style,
    compression: str,
) -> None:
    options = {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "photometric": "rgb",
        "compression": compression,
        "compressionargs": {"level": 85} if compression == "jpeg" else {},
        "maxworkers": 1,
        "metadata": None,
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=style == "ome") as writer:
        for index, (width, height, tiles) in enumerate(pages):
            chosen = dict(options)
            if style == "ome" and index == 0:
                chosen["metadata"] = {"axes": "YXS", **_ome_size(mpp)}
                chosen["subifds"] = len(pages) - 1
            elif index:
                chosen["subfiletype"] = 0 if style == "aperio" else 1
            if style == "aperio":
                field = "" if mpp is None else f"|MPP = {mpp:g}"
                chosen["description"] = (
                    f"Aperio Image Library v11.2.1\r\n{width}x{height} (256x256) JPEG/RGB Q=85"
                    f"|AppMag = 20{field}"
                )
            elif style == "generic" and mpp is not None and index == 0:
                chosen["resolution"] = (1e4 / mpp, 1e4 / mpp)
                chosen["resolutionunit"] = "CENTIMETER"
            writer.write(tiles, shape=(height, width, 3), **chosen)
            if style == "aperio" and index == 0:
                # The second directory of Aperio's files is a thumbnail in strips.
                thumbnail = np.full((48, 64, 3), 255, np.uint8)
                writer.write(thumbnail, photometric="rgb", rowsperstrip=16, metadata=None)


def _ome_size(mpp: float | None) -> dict[str, float | str]:
    if mpp is None:
        return {}
    return {f"PhysicalSize{axis}": mpp for axis in "XY"} | {
        f"PhysicalSize{axis}Unit": "µm" for axis in "XY"
    }
