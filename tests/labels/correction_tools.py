"""Drawn slides to correct, and a folder of their corrections."""

import csv
from pathlib import Path

import numpy as np

from configs import base_labels
from data import synthetic, synthetic_slides
from wsss_jax import jobs
from wsss_jax.labels.correction_folder import Field, Origin
from wsss_jax.labels.correction_splits import TrainingSlides
from wsss_jax.labels.corrections import Asked, Corrections
from wsss_jax.slides.reading.catalog import SlideFile

REAL = Path(__file__).parents[3] / "shared" / "data" / "slides" / "cmu-1-small-region.svs"
SIZE = 64
FIELD = Field(SIZE, 1.0, "area")
ORIGIN = Origin(synthetic.DATASET, FIELD, TrainingSlides())


def draw_slide(folder: Path, name: str, mpp: float = 0.5, seed: int = 0) -> SlideFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svs"
    image, _ = synthetic.draw_patch(np.random.default_rng(seed), 400)
    synthetic_slides.write_arrays(path, [image], mpp)
    return SlideFile(path, name, None)


class Pathologist:
    """Somebody who answers, each time with another key."""

    def __init__(self, corrections: Corrections, name: str = "Ann"):
        self.corrections, self.name, self.keys = corrections, name, 0

    def ask(self) -> Asked:
        self.keys += 1
        return Asked(self.name, f"{self.name} {self.keys}", self.keys)

    def answer(self, slide: SlideFile, x: float, y: float, answer: str = "1000"):
        return self.corrections.take(self.ask(), slide, (x, y), answer)

    def undo(self, slide: SlideFile):
        return self.corrections.undo(self.ask(), slide.name)


def list_answers(corrections: Corrections, slide: SlideFile) -> list[tuple[str, str]]:
    return [(each.person, each.answer) for each in corrections.list_of_slide(slide.name)]


def list_pictures(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*.png")}


def export(root: Path, **changes: object) -> dict[str, dict[str, str]]:
    """Exports labels; the rows of labels.csv, by patch."""
    config = base_labels.export_labels()
    config.data.root = str(root)
    config.update(changes)
    jobs.run(config, root / "job")
    with (root / "labeled" / "labels.csv").open() as file:
        return {row["patch"]: row for row in csv.DictReader(file)}
