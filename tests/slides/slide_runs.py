"""What tests of whole slides share: a drawn slide, its configuration, and networks by color."""

import json
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import tifffile

from configs import base_slides
from configs import compare_maps as compare_maps_config
from data.synthetic import DATASET
from data.synthetic_slides import draw_section, write_pyramid
from tests.slides import short_segmentation
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.slides import tissue_map
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.reading import catalog

SIZE = 640, 512  # of the drawn slide at level 0, pixels
MPP = 0.5  # at level 0
DETERMINISTIC = ("label_map.ome.tif", "tissue.geojson", "areas.csv")
BY_COLOR = {"mpp": 1.0, "tissue.min_tissue": 500.0}


def write_slide(path: Path, mpp: float | None = MPP) -> Path:
    write_pyramid(path, draw_section(*SIZE), mpp, levels=(1, 2, 4))
    return path


def make_config(slides: Path | str, runs_dir: Path) -> ml_collections.ConfigDict:
    config = base_slides.segment(str(slides), str(runs_dir / "phase1"), str(runs_dir / "phase2"))
    config.mpp, config.batch_size, config.stride = 1.0, 16, 16
    config.geojson.min_area, config.geojson.simplify = 0.0, 0.0
    config.tissue.closing, config.tissue.min_tissue, config.tissue.min_hole = 8.0, 500.0, 500.0
    config_lib.validate(config)
    return config


def segment_by_color(slide: Path, folder: Path, **changes: object) -> dict:
    """The summary of a slide segmented without trained networks."""
    config = base_slides.segment(str(slide), "", "unused")
    config.tile, config.stride, config.batch_size = 64, 64, 8
    config.geojson.min_area, config.geojson.simplify = 0.0, 0.0
    config.update_from_flattened_dict(changes)
    by_color = networks.Networks(short_segmentation.predict, {"phase2": "by color"})
    file = catalog.SlideFile(slide, slide.stem, None)
    tissue_map.segment_slide(config, DATASET, by_color, file, folder, show_progress=False)
    return read_json(folder / "slide.json")


def load_by_color(patch: pytest.MonkeyPatch) -> None:
    """Makes the job segment by color instead of loading networks."""
    by_color = networks.Networks(short_segmentation.predict, {})
    patch.setattr(networks, "load", lambda config: by_color)


def refuse_to_load(config: ml_collections.ConfigDict) -> None:
    raise AssertionError("a network is loaded")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def read_times(folder: Path) -> dict[str, int]:
    """When the files of a folder were written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def read_labels(folder: Path) -> np.ndarray:
    """The label map of a slide, at full resolution."""
    return tifffile.imread(folder / "label_map.ome.tif", series=0, level=0)


def compare_maps(first: Path, second: Path, workdir: Path, **fields: object) -> None:
    """Compares the maps of two workdirs."""
    config = compare_maps_config.get_config()
    config.maps = str(first), str(second)
    config.update(fields)
    config_lib.validate(config)
    jobs.run(config, workdir)
