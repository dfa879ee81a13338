"""The defaults of further rounds: masks of phase 2's own predictions, and training on them."""

from ml_collections import ConfigDict

from configs import base


def relabel(phase2: str) -> ConfigDict:
    """Masks of what the run `phase2` predicts for its training patches."""
    return ConfigDict(
        {
            "job": "relabel",
            "phase2": phase2,
            "data": base.inherited_data(),
            # patches are left out where a class of their label has less than this share of the
            # pixels that are not white; HisynSeg and HAMIL use 0.1
            "min_share": 0.1,
            "white_threshold": 200,  # gray value (0-255) above which a pixel is background ...
            "white_min_area": 50,  # ... in 4-connected areas of at least so many pixels
            "tta": "d4",  # mean over views of each patch: "none" (1), "flips" (4) or "d4" (8)
            "batch_size": 20,
            "palette": "dataset",  # colors of the contact sheet; "colorblind": see evaluate
            "sheet_patches": 8,  # rows of the contact sheet
            "seed": 0,  # of the sample on it
        }
    )


def next_round(config: ConfigDict, masks: str, init: str) -> ConfigDict:
    """Phase 2 once more, from the weights of the run `init`, on the masks of the job `relabel`.

    Args:
      config: of phase 2; it is changed.
      masks: the run of `relabel`.
      init: a run of phase 2; "" starts as the first round did.
    """
    config.masks, config.init = masks, init
    config.layers, config.layer_weights = ("phase2",), (1.0,)
    return config
