"""Writes DICOM slides for tests."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data import synthetic_slides


def write_dicom(folder: Path, arrays: Sequence[np.ndarray], mpp: float) -> None:
    """Writes level0.dcm, level1.dcm, ... of one slide in JPEG, with the fields viewers require.

    Args:
      folder: is created.
      arrays: (h, w, 3) uint8, one for each level.
      mpp: micrometers per pixel of level 0.
    """
    # pydicom is optional: modules that import this one run without it.
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
            for tile in synthetic_slides.iterate_tiles(synthetic_slides.wrap_array(array))
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
            Rows=synthetic_slides.TILE,
            Columns=synthetic_slides.TILE,
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
