"""Makes the masks of the images and slides that shapes were drawn on."""

import dataclasses
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import ml_collections
import numpy as np

from data import patch_files
from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.polygons import classes, shapes
from wsss_jax.polygons.drawings import get_stem, read_drawing
from wsss_jax.polygons.embedded import read_embedded
from wsss_jax.polygons.images import Images
from wsss_jax.polygons.outputs import Write
from wsss_jax.polygons.shapes import NamedImage, Shape, Window
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.reading.slide import Slide, open_slide
from wsss_jax.slides.reading.view import View

_LARGEST = 178_000_000  # pixels of a mask; a larger PNG would not be read again


class MaskMaker:
    """Makes masks as the configuration says.

    Attributes:
      dataset: describes the masks.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        """Prepares what all files have in common.

        Raises:
          InputError: names the field that is wrong.
        """
        dataset = classes.load_classes(config.dataset, config.classes)
        self.dataset = dataclasses.replace(dataset, mpp=config.mpp) if config.mpp else dataset
        self._config = config
        self._background = dataset.excluded
        if config.background:
            self._background = classes.find_class(config.background, dataset, "background")
        ignored = [*config.ignored, *filter(None, [config.region])]
        self._labels = classes.make_labels(dataset, config.labels, ignored, self._background)
        self._order = [
            classes.find_class(name, dataset, "order") for name in config.order or dataset.classes
        ]
        if sorted(self._order) != list(range(dataset.num_classes)):
            raise InputError(
                "config.order: name each class once, from the lowest to the uppermost: "
                f"{', '.join(dataset.classes)}"
            )
        self._list_images: Callable[[str], Images] = lru_cache(
            lambda text: Images(text, config.slide_mpp, config.mpp_table)
        )
        if config.images:
            self._list_images(config.images)

    def convert(self, path: Path, write: Write) -> Counter[str]:
        """Writes the masks of a file of shapes, `masks/<name>.png`, and `images/<name>.png`.

        Args:
          path: of the file.
          write: of `Outputs`.

        Returns:
          how many shapes were left out, by kind.

        Raises:
          InputError: names the file, and the shape if one is wrong.
        """
        drawing = read_drawing(path)
        if drawing.image is None:
            self._mask_slide(drawing.shapes, path, write)
        else:
            self._mask_image(drawing.shapes, drawing.image, path, write)
        return drawing.left_out

    def _mask_image(
        self, drawn: Sequence[Shape], named: NamedImage, path: Path, write: Write
    ) -> None:
        """Writes the mask of an image on which labelme was used."""
        for field in ("mpp", "region"):
            if self._config[field]:
                raise InputError(
                    f"{path}: --config.{field} is for slides in GeoJSON, this file is of labelme; "
                    f"leave --config.{field} out"
                )
        image, size = None, named.size
        if self._config.write_images or size is None:
            image = self._read_image(named, path)
            height, width, _ = image.shape
            if size not in (None, (width, height)):
                raise InputError(
                    f"{path}: its image is {width}x{height} pixels, but the shapes were drawn on "
                    f"{size[0]}x{size[1]}; name the right folder by --config.images"
                )
            size = width, height
        window = Window(*size)
        _check_size(window, path)
        shapes.check_overlap(drawn, window, path)
        self._write(get_stem(path), self._paint(drawn, window, path), image, write)

    def _read_image(self, named: NamedImage, path: Path) -> np.ndarray:
        if named.data:
            return read_embedded(named.data, path, "imageData", patch_files.read_region)
        if self._config.images:
            name = Path(named.path).name or get_stem(path)
            image = self._list_images(self._config.images).find(name, path).path
        else:
            image = path.parent / named.path
            try:
                check_regular(image)
            except InputError as error:
                raise InputError(
                    f"{path}: its image {reprlib.repr(named.path)} is not there; name the folder "
                    "of the images by --config.images, or do without them: "
                    "--config.write_images=False"
                ) from error
        return patch_files.read_region(image)

    def _mask_slide(self, drawn: Sequence[Shape], path: Path, write: Write) -> None:
        """Writes the masks of a slide, or an image, on which QuPath was used."""
        images = self._list_images(self._config.images or str(path.parent))
        file = images.find(get_stem(path), path)
        with open_slide(file.path, file.mpp) as slide:
            frame, read = _look_at(slide, self._config.mpp)
            origin = -frame.origin[0], -frame.origin[1]
            whole = Window(frame.width, frame.height, frame.scale, origin)
            shapes.check_overlap(drawn, whole, path)
            if not self._config.region:
                _check_size(whole, path)
                mask = self._paint(drawn, whole, path)
                image = read(0, 0, whole.width, whole.height) if self._config.write_images else None
                self._write(file.name, mask, image, write)
                return
            for shape in _find_regions(drawn, self._config.region, path):
                column, row, window = shapes.cut_window(shape, whole)
                _check_size(window, path)
                mask = self._paint(drawn, window, path)
                mask[shapes.paint([(shape, 1)], window, 0) == 0] = self.dataset.excluded
                size = window.width, window.height
                image = read(column, row, *size) if self._config.write_images else None
                x, y = map(round, window.corner)
                self._write(f"{file.name}_x{x}_y{y}", mask, image, write)

    def _paint(self, drawn: Sequence[Shape], window: Window, path: Path) -> np.ndarray:
        chosen = self._labels.choose_values(drawn, path)
        ordered = shapes.sort_shapes(chosen, self._config.overlap, self._order)
        return shapes.paint(ordered, window, self._background)

    def _write(self, name: str, mask: np.ndarray, image: np.ndarray | None, write: Write) -> None:
        if image is not None:
            write(f"images/{name}.png", lambda path: patch_files.write_image(path, image))
        write(f"masks/{name}.png", lambda path: patch_files.write_mask(path, mask, self.dataset))


def _look_at(
    slide: Slide, mpp: float
) -> tuple[MapFrame, Callable[[int, int, int, int], np.ndarray]]:
    """Returns the frame of a slide at `mpp`, or of its level 0 if that is 0, and how to read it."""
    if mpp:
        view = View(slide, mpp)
        return view.frame, view.read
    size = slide.width, slide.height
    frame = MapFrame(*size, slide.mpp or 1.0, (1.0, 1.0), size, slide.bounds[:2])
    return frame, lambda *region: slide.read(0, *region)


def _find_regions(drawn: Sequence[Shape], label: str, path: Path) -> list[Shape]:
    regions = [shape for shape in drawn if shape.label == label]
    if not regions:
        raise InputError(
            f"{path}: no shape is called {label!r}; give the regions that class in QuPath, or "
            "leave --config.region out for the whole slide"
        )
    return regions


def _check_size(window: Window, path: Path) -> None:
    if window.width * window.height > _LARGEST:
        raise InputError(
            f"{path}: a mask of {window.width}x{window.height} pixels is too large; choose a "
            "coarser --config.mpp, or regions by --config.region"
        )
