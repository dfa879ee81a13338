"""The patches of a training run."""

from typing import NamedTuple

import ml_collections

from data.dataset import Dataset
from wsss_jax import inputs
from wsss_jax.errors import InputError
from wsss_jax.patch_records import PatchRecord
from wsss_jax.sources import Source
from wsss_jax.training import history as histories
from wsss_jax.training.task import Validate


class Patches(NamedTuple):
    """The patches of a run: to train on and, if there are any, to validate on."""

    dataset: Dataset
    training: Source
    validation: Source | None = None

    def records(self) -> list[PatchRecord]:
        """Returns what says which patches these are."""
        validation = self.validation.records if self.validation else ()
        return [
            *self.training.records,
            *(record._replace(name=f"val/{record.name}") for record in validation),
        ]


def check_patches(
    config: ml_collections.ConfigDict, patches: Patches, validate: Validate | None
) -> int:
    """Sees that there are patches for what the configuration asks; returns the steps per epoch.

    Raises:
      InputError: too few for a batch, or none to select a checkpoint by.
    """
    examples = len(patches.training)
    steps = inputs.count_steps(examples, config.batch_size, config.drop_last)
    if steps == 0:
        raise InputError(
            f"config.batch_size is {config.batch_size} but there are only {examples} training "
            "patches: set a smaller one"
        )
    if not histories.selecting_score(config):
        return steps
    classes = patches.dataset.num_classes
    if validate is None:
        raise InputError(
            f"config.select is {config.select!r} but there are no validation patches: set "
            "--config.select=last"
        )
    if patches.validation is not None and not _has_masks(patches.validation):
        raise InputError(
            f"config.select is {config.select!r} but the validation patches of {config.data.root} "
            "have no masks: add val/mask, or set --config.select=last"
        )
    if patches.validation is not None and not _has_counted_pixels(patches.validation, classes):
        raise InputError(
            f"config.select is {config.select!r} but no pixel of the validation masks of "
            f"{config.data.root} belongs to a class: correct val/mask, or set --config.select=last"
        )
    return steps


def _has_masks(validation: Source) -> bool:
    return len(validation) > 0 and "masks" in validation[0]


def _has_counted_pixels(validation: Source, num_classes: int) -> bool:
    """Tells whether a validation mask has a pixel that scores count; stops at the first."""
    return any(
        (patch["masks"][0] < num_classes).any()
        for patch in (validation[index] for index in range(len(validation)))
        if "masks" in patch
    )
