"""What a method predicts."""

from typing import NamedTuple

import jax


class Prediction(NamedTuple):
    """What a method predicts for a batch.

    Attributes:
      label_maps: (B, H, W) uint8, the class of each pixel.
      presence: (B, C) float32, the probability that the patch has each class; None from methods
        that do not classify patches.
      logits: (B, H, W, C) float32, of each pixel; None from methods that give label maps only.
      activations: (B, C, h, w) float32, the maps that the label maps were made of; None from
        methods whose label maps are the strongest of `logits`.
    """

    label_maps: jax.Array
    presence: jax.Array | None = None
    logits: jax.Array | None = None
    activations: jax.Array | None = None
