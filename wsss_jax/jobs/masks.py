"""Opens a trained classifier into pseudo masks of several layers."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from wsss_jax import cam, mask_folders, masks, parallel, runs
from wsss_jax import config_rules as rules
from wsss_jax.crf import DenseCrf, refine_probabilities
from wsss_jax.errors import InputError
from wsss_jax.sources import Batch
from wsss_jax.training.task import DeviceBatch, Variables
from wsss_jax.training.trained import Trained, load_trained

SHARED = True
FIELDS = {
    **rules.DATA,
    "phase1": rules.NAME,
    "layers": rules.sequence(rules.LAYER),
    "absent": rules.one_of("excluded", "zero"),
    "white_threshold": rules.integer(0, 255),
    "white_min_area": rules.integer(0, rules.MOST_PIXELS**2),
    "scales": rules.added(rules.sequence(rules.number(0.25, 4)), (1.0,)),
    "tta": rules.TTA,
    **rules.CRF,
    "batch_size": rules.integer(1, rules.MOST_EXAMPLES),
    "palette": rules.added(rules.PALETTE, "dataset"),
    "sheet_patches": rules.integer(0, 1000),
    "seed": rules.SEED,
}


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses a configuration without layers or scales; see `config.validate`."""
    if not config.layers:
        raise InputError(f"{prefix}layers is empty: name at least one layer")
    if not config.scales:
        raise InputError(f'{prefix}scales is empty: set --{prefix}scales="(1.0,)"')
    if config.crf.iterations and config.absent == "zero":
        raise InputError(
            f"{prefix}absent is 'zero', but the CRF ({prefix}crf.iterations) knows only classes "
            f"that a patch has: set --{prefix}absent=excluded or --{prefix}crf.iterations=0"
        )


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the pseudo masks of all training patches, their contact sheet and their scores.

    Masks that an earlier start of the same job has written are not made again, unless the patch,
    or what the classifier makes its maps with, has changed since. For the files see
    `mask_folders.make_masks`.
    """
    classifier = load_trained(config.phase1, "phase1", "activations", tta=config.tta)
    _check_layers(config, classifier)
    config, patches = mask_folders.open_patches(config, classifier)
    mask_folders.prepare(config, workdir, classifier, patches.training.records, config.layers)
    maker = mask_folders.Maker(config.layers, make_opener(config, classifier))
    mask_folders.make_masks(config, workdir, patches, maker)


def _check_layers(config: ml_collections.ConfigDict, classifier: Trained) -> None:
    """Refuses layers at which the classifier cannot be opened, before anything is written."""
    layers = classifier.method.LAYERS
    if unknown := [layer for layer in config.layers if layer not in layers]:
        raise InputError(
            f"config.layers names {', '.join(unknown)}, but {config.phase1} is a run of "
            f"{classifier.method.TITLE}, which can be opened at {', '.join(layers)} only: set "
            f'--config.layers="{layers}" or some of these'
        )


def make_opener(config: ml_collections.ConfigDict, classifier: Trained) -> mask_folders.Open:
    """Makes a function that gives the label maps of batches.

    Activation maps are computed over the local devices, white background is found on the host.
    """

    crf = DenseCrf.of(config.crf)

    def label_maps(variables: Variables, batch: DeviceBatch) -> dict[str, jax.Array]:
        image, label = batch["image"], batch["label"]
        open_layers = partial(classifier.open_layers, variables, layers=config.layers)
        maps = cam.average_scales(open_layers, image, config.scales)
        if crf.iterations:
            size = image.shape[1:3]
            shares = {k: masks.probabilities(v, label, size) for k, v in maps.items()}
            refined = {k: refine_probabilities(v, image, crf) for k, v in shares.items()}
            maps = {k: jnp.moveaxis(v, -1, 1) for k, v in refined.items()}
        # The classes compete from here on; what refines maps by the image belongs before it.
        return {
            layer: masks.label_maps(of_layer, label, image.shape[1:3], absent=config.absent)
            for layer, of_layer in maps.items()
        }

    mapped = parallel.map_batch(label_maps)

    def open_batch(batch: Batch) -> dict[str, np.ndarray]:
        return mask_folders.exclude_white(
            config, classifier.dataset, batch["image"], mapped(classifier.variables, batch)
        )

    return open_batch
