"""The label map as OME-Zarr: a folder that programs for very large images open piece by piece.

https://ngff.openmicroscopy.org/0.5/, on Zarr 3 with shards, so that a map is hundreds of files and
not tens of thousands. Like the TIFF maps it is read and written in bands.
"""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.pyramid import BAND, TILE, list_steps
from wsss_jax.slides.outputs.regions import ReadRows

SHARD = BAND, 16 * TILE  # pixels, height and width of a file: a band fills whole files
_SHARDS = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [TILE, TILE],
        "codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 6}}],
        "index_codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
    },
}
_CREATOR = "wsss_jax"
_GROUP = "zarr.json"  # describes the folder; each level has one, too


def write_ome_zarr(
    folder: Path, read_rows: ReadRows, frame: MapFrame, legend: Legend, name: str
) -> None:
    """Writes label values as a pyramid of OME-Zarr 0.5 labels, atomically.

    0 means no class, as programs for labels expect; class k of the legend is k + 1. The levels are
    those of `pyramid.write_label_map`: every second pixel of the level before, each at the center
    of the pixel that it is of, so that the levels need no shift. The same map always gives the same
    bytes.

    Args:
      folder: ends in `.ome.zarr`. An earlier one of this program is replaced.
      read_rows: reads the map of label values 0..C.
      frame: of the map.
      legend: of the C classes; C is at most 255.
      name: of the image.

    Raises:
      InputError: another program made the folder.
    """
    check_replaceable(folder)
    steps = list_steps(frame.width, frame.height)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for level, step in enumerate(steps):
            _write_level(temporary / str(level), read_rows, frame, legend.excluded, step)
        group = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"ome": _describe(frame, legend, name, steps)},
        }
        (temporary / _GROUP).write_text(json.dumps(group, indent=2) + "\n", encoding="utf-8")
        if folder.is_dir():
            # A folder is not replaced by another one. Moved, it is removed with the temporary one.
            folder.rename(temporary.parent / "before")


def check_replaceable(folder: Path) -> None:
    """Refuses a folder that this program did not write.

    Raises:
      InputError: says so.
    """
    path = folder / _GROUP
    if folder.exists() and not (path.is_file() and f'"{_CREATOR}"' in path.read_text("utf-8")):
        raise InputError(f"{folder}: not written by this program: move it, or rename it")


def _write_level(
    folder: Path, read_rows: ReadRows, frame: MapFrame, excluded: int, step: int
) -> None:
    height, width = -(-frame.height // step), -(-frame.width // step)
    values = np.append(np.arange(1, excluded + 1), 0).astype(np.uint8)
    metadata = {
        "shape": [height, width],
        "data_type": "uint8",
        "fill_value": 0,
        "dimension_names": ["y", "x"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(SHARD)}},
        "codecs": [_SHARDS],
    }
    store = {"driver": "file", "path": str(folder)}
    with _raise_os_errors(folder):
        array = tensorstore.open(
            {"driver": "zarr3", "kvstore": store, "metadata": metadata}, create=True
        ).result()
    for y0 in range(0, frame.height, BAND * step):
        labels = read_rows(y0, min(y0 + BAND * step, frame.height), step)
        top = y0 // step
        with _raise_os_errors(folder):
            array[top : top + len(labels)].write(values[labels]).result()


@contextmanager
def _raise_os_errors(folder: Path) -> Iterator[None]:
    """Makes errors of the file system of what tensorstore raises for them."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(folder)) from error


def _describe(frame: MapFrame, legend: Legend, name: str, steps: list[int]) -> dict[str, Any]:
    """Makes the metadata of the image, its levels and its classes."""
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [frame.mpp * step] * 2}],
        }
        for level, step in enumerate(steps)
    ]
    classes = list(zip(legend.names, legend.palette))
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": axes,
                "datasets": datasets,
                "type": "nearest",
                "metadata": {"creator": _CREATOR},
            }
        ],
        "image-label": {
            "colors": [
                {"label-value": value, "rgba": [*color, 255]}
                for value, (_, color) in enumerate(classes, start=1)
            ],
            "properties": [
                {"label-value": value, "class": name}
                for value, (name, _) in enumerate(classes, start=1)
            ],
        },
    }
