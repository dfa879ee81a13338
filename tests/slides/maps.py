"""A label map in memory, as the writers of files read maps."""

from typing import NamedTuple

import numpy as np

from data.dataset import Dataset
from wsss_jax.report.colors import make_legend
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs.regions import ReadRows

DATASET = Dataset(
    name="tissue",
    classes=("TE", '<script>alert("1")</script>', "Leukozyten µ\\../", "TAS"),
    palette=((205, 51, 51), (0, 255, 0), (65, 105, 225), (255, 165, 0), (255, 255, 255)),
    white=True,
    label_notation="spaces",
    present_share=0.0,
    roles={"tumor": "TE", "stroma": "TAS", "lymphocytes": "Leukozyten µ\\../"},
)


class Map(NamedTuple):
    """Labels of the classes of `DATASET`, and 4; on a slide of half the pixel size."""

    labels: np.ndarray

    @property
    def read_rows(self) -> ReadRows:
        return lambda y0, y1, step: self.labels[y0:y1:step, ::step]

    @property
    def frame(self) -> MapFrame:
        height, width = self.labels.shape
        return MapFrame(width, height, 1.0, (2.0, 2.0), (2 * width, 2 * height))

    @property
    def legend(self) -> Legend:
        return make_legend(DATASET, "dataset")

    @property
    def counts(self) -> list[int]:
        """Pixels of each class."""
        return [np.count_nonzero(self.labels == value) for value in range(DATASET.num_classes)]


def draw_map(width: int, height: int, seed: int = 0) -> Map:
    """Draws a map in blocks, of which the last class has none and the first column no class."""
    rng = np.random.default_rng(seed)
    side = 37
    blocks = rng.choice([0, 1, 2, 4], (-(-height // side), -(-width // side)))
    labels = np.kron(blocks, np.ones((side, side), np.int64))[:height, :width].astype(np.uint8)
    labels[:, :side] = 4
    return Map(labels)
