"""A source whose examples are in part composed of patches that have a single class.

What such a patch shows is known without a network: its class is right at every pixel that is not
white background. Composed of several, they are training patches of several classes with true masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ml_collections
import numpy as np

from wsss_jax.augmentation.composition import Piece, Sizes, make_mosaic, paste_region
from wsss_jax.errors import InputError
from wsss_jax.patch_records import PatchRecord
from wsss_jax.sources import Batch, Source

_STREAM = 17  # sets these random numbers apart from others of the same seed


@dataclass(eq=False)
class CompositeSource:
    """A `Source` that replaces a share of the examples, others in each epoch.

    What replaces an example follows from (seed, epoch, index) alone.

    Attributes:
      source: the patches, with masks.
      num_classes: C, which is also the mask value of excluded pixels.
      seed: of the run.
      mosaic, paste: shares of the examples that become mosaics, or get a region pasted.
      sizes: of the parts of composed patches.
    """

    source: Source
    num_classes: int
    seed: int
    mosaic: float
    paste: float
    sizes: Sizes

    def __post_init__(self) -> None:
        self.names: Sequence[str] = self.source.names
        self.records: Sequence[PatchRecord] = self.source.records
        single = _find_single(self.records)
        # Classes, each with the indices of the patches that have no other.
        self._single = [(c, np.array(single[c])) for c in sorted(single)]
        if self.mosaic and not single:
            raise InputError(
                f"config.augment.mosaic is {self.mosaic:g} but no training patch has a single "
                "class in its label: set --config.augment.mosaic=0"
            )
        if self.paste and len(single) < 2:
            raise InputError(
                f"config.augment.paste is {self.paste:g} but the training patches with a single "
                f"class in their label show {len(single)} of the classes, and it takes two: set "
                "--config.augment.paste=0"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        """Reads the patch itself."""
        return self.source[index]

    def read_in_epoch(self, epoch: int, index: int) -> Batch:
        """Reads what an epoch shows in the place of a patch: itself, or what replaces it."""
        rng = np.random.default_rng((self.seed, _STREAM, epoch, index))
        number = rng.random()
        if number >= self.mosaic + self.paste:
            return self.source[index]
        if number < self.mosaic:
            classes = rng.integers(len(self._single), size=4)
            composed = make_mosaic(rng, [self._draw(rng, c) for c in classes], self.sizes)
        else:
            ground, pasted = rng.permutation(len(self._single))[:2]
            composed = paste_region(
                rng, self._draw(rng, ground), self._draw(rng, pasted), self.sizes
            )
        return {
            "image": composed.image,
            "label": np.isin(np.arange(self.num_classes), composed.masks).astype(np.uint8),
            "index": np.asarray(index, np.int32),
            "masks": composed.masks,
        }

    def _draw(self, rng: np.random.Generator, number: int) -> Piece:
        """Draws a patch of a class; its masks are the class wherever they are not excluded."""
        of_class, indices = self._single[number]
        element = self.source[int(rng.choice(indices))]
        is_excluded = element["masks"] == self.num_classes
        return Piece(
            element["image"], np.where(is_excluded, self.num_classes, of_class).astype(np.uint8)
        )


def compose(source: Source, config: ml_collections.ConfigDict, num_classes: int) -> Source:
    """Returns a source that composes what `config.augment` asks for; else the source itself.

    Args:
      source: training patches, with masks.
      config: of a method; those without the fields `augment.mosaic` and `augment.paste` compose
        nothing.
      num_classes: C.

    Raises:
      InputError: there are no patches with a single class to compose of.
    """
    fields = config.augment
    mosaic, paste = fields.get("mosaic", 0), fields.get("paste", 0)
    if not mosaic and not paste:
        return source
    sizes = Sizes(fields.mosaic_split, tuple(fields.paste_radius), tuple(fields.scale))
    return CompositeSource(source, num_classes, config.seed, mosaic, paste, sizes)


def _find_single(records: Sequence[PatchRecord]) -> dict[int, list[int]]:
    """Finds the patches whose label has one class: class -> their indices."""
    single: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        classes = [c for c, value in enumerate(record.label.split()) if value == "1"]
        if len(classes) == 1:
            single.setdefault(classes[0], []).append(index)
    return single
