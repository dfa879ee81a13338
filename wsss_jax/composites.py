"""A source whose examples are in part composed of patches that have a single class.

What such a patch shows is known without a network: its class is right at every pixel that is not
white background. Composed of several, they are training patches of several classes with true masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ml_collections
import numpy as np
from tqdm import tqdm

from wsss_jax.augmentation.composition import Piece, Sizes, make_mosaic, paste_region
from wsss_jax.patch_records import PatchRecord
from wsss_jax.sources import Batch, Source

_STREAM = 17  # sets these random numbers apart from others of the same seed


@dataclass(eq=False)
class CompositeSource:
    """A `Source` that replaces a share of the examples, others in each epoch.

    What replaces an example follows from (seed, epoch, index) alone. Classes are drawn as often as
    patches show them, alone or with others, so that the network sees their shares hardly changed.

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
        counts = np.array(
            [sum(c in _read_classes(r) for r in self.records) for c in sorted(single)]
        )
        self._shares = counts / counts.sum()

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
            classes = rng.choice(len(self._single), size=4, p=self._shares)
            composed = make_mosaic(rng, [self._draw(rng, c) for c in classes], self.sizes)
        else:
            ground, pasted = rng.choice(len(self._single), size=2, replace=False, p=self._shares)
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

    Where patches with a single class are missing, which many data sets do not have, it says so and
    goes on without.

    Args:
      source: training patches, with masks.
      config: of a method; those without the fields `augment.mosaic` and `augment.paste` compose
        nothing.
      num_classes: C.
    """
    fields = config.augment
    mosaic, paste = fields.get("mosaic", 0), fields.get("paste", 0)
    found = len(_find_single(source.records)) if mosaic or paste else 0
    # A mosaic takes one class, as a region on a patch of another class takes two.
    if paste and found < 2:
        tqdm.write(f"config.augment.paste does nothing: {_describe_lack(found)}, and it takes two")
        paste = 0
    if mosaic and not found:
        tqdm.write(f"config.augment.mosaic does nothing: {_describe_lack(found)}")
        mosaic = 0
    if not mosaic and not paste:
        return source
    sizes = Sizes(fields.mosaic_split, tuple(fields.paste_radius), tuple(fields.scale))
    return CompositeSource(source, num_classes, config.seed, mosaic, paste, sizes)


def _describe_lack(found: int) -> str:
    return f"the training patches with a single class in their label show {found} of the classes"


def _find_single(records: Sequence[PatchRecord]) -> dict[int, list[int]]:
    """Finds the patches whose label has one class: class -> their indices."""
    single: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        classes = _read_classes(record)
        if len(classes) == 1:
            single.setdefault(classes[0], []).append(index)
    return single


def _read_classes(record: PatchRecord) -> list[int]:
    """Lists the classes of a patch's label."""
    return [c for c, value in enumerate(record.label.split()) if value == "1"]
