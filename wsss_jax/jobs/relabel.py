"""Makes the masks of a further round: what phase 2 predicts, as far as labels allow it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from wsss_jax import config_rules as rules
from wsss_jax import mask_folders, masks, parallel, runs
from wsss_jax.errors import InputError
from wsss_jax.methods.prediction import Prediction
from wsss_jax.sources import Batch, Source
from wsss_jax.training.task import DeviceBatch
from wsss_jax.training.trained import Trained, bind, load_trained

SHARED = True
FIELDS = {
    **rules.DATA,
    "phase2": rules.NAME,
    "min_share": rules.PROBABILITY,
    "white_threshold": rules.integer(0, 255),
    "white_min_area": rules.integer(0, rules.MOST_PIXELS**2),
    "tta": rules.TTA,
    "batch_size": rules.integer(1, rules.MOST_EXAMPLES),
    "palette": rules.PALETTE,
    "sheet_patches": rules.integer(0, 1000),
    "seed": rules.SEED,
}


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes masks for a further training of phase 2, and says which patches it leaves out.

    A mask is the strongest class of each pixel among those of the patch's label (as HisynSeg and
    HAMIL do). Left out are patches in which a class of the label has less than `config.min_share`
    of the pixels that are not white: there the network does not see what is known to be there.
    Resumes as the job `masks`; for the files see `mask_folders.make_masks`. With another
    `config.min_share` the masks that there are are sorted again, and none is predicted again.

    Raises:
      InputError: every patch would be left out.
    """
    segmenter = load_trained(config.phase2, "phase2", "logits", tta=config.tta)
    config, patches = mask_folders.open_patches(config, segmenter)
    layers, source = (runs.RELABELED,), patches.training
    mask_folders.prepare(config, workdir, segmenter, source.records, layers)

    def is_kept(mask: np.ndarray, label: np.ndarray) -> bool:
        return masks.has_all_classes(mask, label, config.min_share)

    maker = mask_folders.Maker(layers, make_labeler(config, segmenter), is_kept)
    if parallel.is_first():
        mask_folders.sort_again(workdir, patches.dataset, source.records, maker)
    parallel.wait_for_all("sorted the masks")
    mask_folders.make_masks(config, workdir, patches, maker)
    if parallel.is_first():
        _report(source, patches.dataset.classes, workdir, config.min_share)


def make_labeler(config: ml_collections.ConfigDict, segmenter: Trained) -> mask_folders.Open:
    """Makes a function that gives the masks of batches, {layer: (B, H, W) uint8}."""

    def label(predictions: dict[str, Prediction], batch: DeviceBatch) -> jax.Array:
        logits = predictions["phase2"].logits
        assert logits is not None  # see `load_trained`
        scores = jnp.moveaxis(logits, -1, 1)
        return masks.label_maps(scores, batch["label"], logits.shape[1:3], absent="excluded")

    predict = bind({"phase2": segmenter}, label)

    def open_batch(batch: Batch) -> dict[str, np.ndarray]:
        return mask_folders.exclude_white(
            config, segmenter.dataset, batch["image"], {runs.RELABELED: predict(batch)}
        )

    return open_batch


def _report(source: Source, classes: tuple[str, ...], workdir: Path, min_share: float) -> None:
    """Prints how many patches are trained on, of all and of those with each class."""
    left_out = mask_folders.list_left_out(workdir)
    kept = [record for record in source.records if record.name not in left_out]
    if not kept:
        raise InputError(
            f"in every patch a class of its label has less than {min_share:.0%} of the pixels: "
            "lower --config.min_share, or train phase 2 further"
        )
    print(f"{len(kept)} of {len(source)} patches are trained on; of those with a class:")
    for index, name in enumerate(classes):
        counts = [
            sum(record.label.split()[index] == "1" for record in records)
            for records in (kept, source.records)
        ]
        print(f"  {name}: {counts[0]} of {counts[1]}")
