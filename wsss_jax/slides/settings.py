"""Completes the settings of tissue maps by what the trained runs decide."""

import ml_collections

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import runs
from wsss_jax.errors import InputError
from wsss_jax.methods.contract import find_giving
from wsss_jax.slides.mapping.tiling import Tiling, choose_stride

FAST_GATE = 2  # strides of the tiles from window to window of the gate, with `speed="fast"`


def complete(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.FrozenConfigDict, Dataset]:
    """Completes what the runs decide: `mpp`, `tile`, `stride`, the gate; and what `speed` says.

    Touches no device.

    Args:
      config: of the job "segment", or of "doctor" with `phase2` set.

    Returns:
      the configuration, and the data set of the runs.

    Raises:
      InputError: no such runs, runs of different classes, strides that do not fit the tile, or no
        known resolution of the training patches.
    """
    config = config_lib.thaw(config)
    earlier, dataset = runs.load(config.phase2, "phase2", find_giving("logits"))
    if not config.phase1:
        config.gate.mode = "off"
    elif config.gate.mode == "off":
        config.phase1 = ""
    else:
        _, other = runs.load(config.phase1, "phase1", find_giving("presence"))
        if other.classes != dataset.classes:
            raise InputError(
                f"config.phase1 and config.phase2 are runs with other classes ({other.classes}, "
                f"{dataset.classes}): name two of one data set"
            )
    config.tile = config.tile or earlier.data.patch_size
    config.stride = config.stride or choose_stride(config.tile)
    if config.stride > config.tile:
        raise InputError(
            f"config.stride is {config.stride}, over the tile's {config.tile}: set "
            f"--config.stride={config.tile // 2} or less"
        )
    _choose_speed(config)
    if not config.mpp:
        # Patches that were resized are of no known resolution.
        if not dataset.mpp or earlier.data.resize:
            raise InputError(
                f"config.mpp: {config.phase2} does not say at how many micrometers per pixel it "
                "learned: set --config.mpp=1.0 for patches at 10x, 0.5 at 20x, 0.25 at 40x"
            )
        config.mpp = dataset.mpp
    return config_lib.freeze(config), dataset


def _choose_speed(config: ml_collections.ConfigDict) -> None:
    """Fills in place the field that `speed` decides if it is not set, and checks it."""
    gate = config.gate
    if config.speed == "fast":
        gate.stride = gate.stride or min(FAST_GATE * config.stride, config.tile)
    if gate.stride and not config.stride <= gate.stride <= config.tile:
        raise InputError(
            f"config.gate.stride is {gate.stride}: set it to {config.stride} (config.stride) to "
            f"{config.tile} (the tile), or to 0, with which phase 1 classifies every tile"
        )
    if not config.phase1 or gate.stride == config.stride:
        gate.stride = 0  # the windows are the tiles


def make_tiling(config: ml_collections.ConfigDict) -> Tiling:
    """Says how the map of a complete configuration is cut into tiles."""
    return Tiling(
        config.tile,
        config.stride,
        config.window,
        config.batch_size,
        config.gate.stride if config.phase1 else 0,
        config.min_tissue_share,
    )


def describe_preview(config: ml_collections.ConfigDict) -> str:
    """Says in a sentence that a map whose tiles overlap by less than half is a preview, else ""."""
    if config.stride <= config.tile // 2:
        return ""
    return (
        f"a preview: tiles of {config.tile} pixels every {config.stride} overlap by "
        f"{1 - config.stride / config.tile:.0%}, not by over 50 % as the method asks; set "
        f"--config.stride={choose_stride(config.tile)} for the map"
    )
