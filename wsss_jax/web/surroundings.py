"""A patch in its slide: the tissue around it."""

import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageDraw

from wsss_jax.errors import InputError
from wsss_jax.labels.patches import Place
from wsss_jax.slides.reading.slide import Slide, open_slide

FIELDS = (2, 4)  # sides of what is shown, in sides of the patch
_SIDE = 512  # pixels of the picture
_OPEN_SLIDES = 4  # each holds files and a cache
_FRAME = (255, 255, 255), (0, 0, 0)  # seen on dark and on light tissue


class Surroundings:
    """Draws patches in their slides. Its method may be called from several threads."""

    def __init__(self, slides: Mapping[str, Path]):
        """Prepares for slides that are opened when they are needed.

        Args:
          slides: name -> file.
        """
        self._paths, self._lock = slides, Lock()
        self._open: OrderedDict[str, Slide] = OrderedDict()

    def draw(self, place: Place, field: int) -> bytes:
        """Draws a patch, framed, in the middle of what is around it.

        Args:
          place: of the patch.
          field: side of what is shown, in sides of the patch.

        Returns:
          A JPEG file of `_SIDE` pixels; what is outside of the slide is white.

        Raises:
          InputError: the slide is not there any more, or cannot be read.
        """
        side = place.size * field
        corner = (side - place.size) / 2
        with self._lock:
            slide = self._get(place.slide)
            factor = side / _SIDE
            level = max(
                (i for i, each in enumerate(slide.levels) if each.downsample <= max(1, factor)),
                key=lambda i: slide.levels[i].downsample,
            )
            scale = slide.levels[level].downsample
            size = max(1, round(side / scale))
            left, top = (round((start - corner) / scale) for start in (place.left, place.top))
            pixels = slide.read(level, left, top, size, size)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
        first, last = corner / factor, (corner + place.size) / factor
        draw = ImageDraw.Draw(picture)
        for inset, color in enumerate(_FRAME):
            box = (first - 2 + inset, first - 2 + inset, last + 1 - inset, last + 1 - inset)
            draw.rectangle(box, outline=color)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        return file.getvalue()

    def _get(self, name: str) -> Slide:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if name not in self._paths:
            raise InputError(f"slides.csv has no slide {name}")
        if not self._paths[name].exists():
            raise InputError(f"{self._paths[name]}: the slide is not there any more")
        slide = self._open[name] = open_slide(self._paths[name])
        while len(self._open) > _OPEN_SLIDES:
            self._open.popitem(last=False)[1].close()
        return slide
