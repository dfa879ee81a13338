"""Makes shapes, to be corrected, of masks and of the maps of slides."""

import os
import shutil
from collections import Counter
from pathlib import Path

import ml_collections
import numpy as np

from data import patch_files
from data.dataset import Dataset
from wsss_jax.errors import InputError
from wsss_jax.polygons import classes, labelme
from wsss_jax.polygons.images import Images
from wsss_jax.polygons.outlines import outline_regions
from wsss_jax.polygons.outputs import Write
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import results
from wsss_jax.slides.outputs.geojson import PolygonRule, write_geojson
from wsss_jax.slides.outputs.label_maps import LabelMap, open_label_map


def is_source(path: Path) -> bool:
    """Whether a path is a mask, or the folder of a slide that was segmented."""
    if path.is_dir():
        return results.is_result_folder(path)
    return path.suffix.lower() == ".png"


class ShapeMaker:
    """Makes shapes as the configuration says."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        """Prepares what all masks have in common.

        Raises:
          InputError: names the field that is wrong.
        """
        self._config, self._workdir = config, workdir
        self._dataset: Dataset | None = None  # maps of slides have their own
        if config.dataset or config.classes:
            self._dataset = classes.load_classes(config.dataset, config.classes)
        self._images = Images(config.images) if config.to == "labelme" else None

    def convert(self, path: Path, write: Write) -> Counter[str]:
        """Writes the shapes of a mask, or of the map of a slide.

        Args:
          path: of the mask, or the folder of the slide.
          write: of `Outputs`.

        Returns:
          nothing that was left out.

        Raises:
          InputError: names the file.
        """
        if path.is_dir():
            if self._images:
                raise InputError(f"{path}: labelme opens no slides; set --config.to=geojson")
            with open_label_map(path) as label_map:
                self._write_geojson(path.name, label_map, write)
            return Counter()
        dataset = self._dataset
        if dataset is None:
            raise InputError(
                f"{path}: its classes are not known; name them by --config.dataset, such as the "
                "dataset.json of the run that made the mask"
            )
        mask = patch_files.read_mask(path, dataset, None)
        if self._images:
            self._write_labelme(path, mask, dataset, self._images, write)
        else:
            height, width = mask.shape
            frame = MapFrame(width, height, 1.0, (1.0, 1.0), (width, height))
            legend = Legend(dataset.classes, dataset.palette)
            label_map = LabelMap(lambda y0, y1, step: mask[y0:y1:step, ::step], frame, legend)
            self._write_geojson(path.stem, label_map, write)
        return Counter()

    def _write_geojson(self, name: str, label_map: LabelMap, write: Write) -> None:
        rule = self._make_rule(label_map.frame.mpp)
        write(
            f"geojson/{name}.geojson",
            lambda path: write_geojson(path, *label_map, name, rule, editable=True),
        )

    def _write_labelme(
        self, path: Path, mask: np.ndarray, dataset: Dataset, images: Images, write: Write
    ) -> None:
        height, width = mask.shape
        image = images.find(path.stem, path).path
        if patch_files.read_region(image).shape[:2] != mask.shape:
            raise InputError(
                f"{path}: {width}x{height} pixels, another size than its image {image}; name the "
                "right images by --config.images"
            )
        if self._config.write_images:
            name = image.name
            write(f"labelme/{name}", lambda target: shutil.copyfile(image, target))
        else:
            name = Path(os.path.relpath(image, self._workdir / "labelme")).as_posix()
        outlines = outline_regions(mask, dataset.excluded, self._make_rule())
        labels = (*dataset.classes, labelme.IGNORE)
        write(
            f"labelme/{path.stem}.json",
            lambda target: labelme.write_labelme(target, outlines, labels, (width, height), name),
        )

    def _make_rule(self, mpp: float = 1.0) -> PolygonRule:
        """Makes the rule for maps of `mpp`; areas of the configuration are in pixels."""
        return PolygonRule(self._config.min_area * mpp**2, self._config.simplify)
