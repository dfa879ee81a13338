"""A folder to label, cut from slides by the program: drawn ones, and a real one where it is."""

import hashlib
from pathlib import Path

import numpy as np

from configs import base_slides
from data import synthetic, synthetic_slides
from data.dataset import derive_label, save_dataset
from wsss_jax import jobs
from wsss_jax.sampling import tables

SIZE = 32  # pixels of a patch
_REAL = Path(__file__).parents[3] / "shared" / "data" / "slides" / "cmu-1-small-region.svs"


def sample_project(root: Path, slides: Path) -> dict[str, list[int]]:
    """Draws slides and samples them; returns what is in each patch, by its name.

    Of the real slide nobody knows: its labels are any, but always the same.
    """
    slides.mkdir(parents=True)
    masks = {}
    for number in range(2):
        image, masks[f"s{number}"] = synthetic.draw_patch(np.random.default_rng(number), 512)
        synthetic_slides.write_arrays(slides / f"s{number}.svs", [image], mpp=1.0)
    if _REAL.is_file():
        (slides / _REAL.name).symlink_to(_REAL)
    config = base_slides.sample(f"{slides}/*.svs", str(root))
    config.size, config.count, config.shares = SIZE, 14, (1.0, 0.0, 0.0)
    config.quality.min_sharpness, config.tissue.min_tissue = -10.0, 1000.0
    jobs.run(config, root.parent / "sample")
    save_dataset(synthetic.DATASET, root / "dataset.json")
    labels = {}
    for row in tables.read_patches(root / tables.PATCHES):
        if not row.kept:
            continue
        if row.slide in masks:
            mask = masks[row.slide][row.top : row.top + SIZE, row.left : row.left + SIZE]
            label = derive_label(mask, synthetic.DATASET).tolist()
        else:
            digest = hashlib.sha256(row.patch.encode()).digest()
            label = [byte % 2 for byte in digest[: len(synthetic.DATASET.classes)]]
        labels[row.patch] = label if any(label) else [1, *label[1:]]
    return labels
