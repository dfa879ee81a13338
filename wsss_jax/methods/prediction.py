"""What a method predicts, and predictors: functions of a batch with the variables bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from wsss_jax import parallel
from wsss_jax.sources import Batch

if TYPE_CHECKING:
    from wsss_jax.training.trained import Trained


class Prediction(NamedTuple):
    """What a method predicts for a batch.

    Attributes:
      label_maps: (B, H, W) uint8, the class of each pixel.
      presence: (B, C) float32, the probability that the patch has each class; None from methods
        that do not classify patches.
      logits: (B, H, W, C) float32, of each pixel; None from methods that give label maps only.
    """

    label_maps: jax.Array
    presence: jax.Array | None = None
    logits: jax.Array | None = None


def bind(
    trained: Mapping[str, Trained],
    combine: Callable[[dict[str, Prediction], Batch], Any],
    *,
    wait: bool = True,
) -> Callable[[Batch], Any]:
    """Makes a predictor of trained networks: one program on the local devices, variables bound.

    Args:
      trained: by name.
      combine: (predictions by the names of `trained`, batch) -> arrays (B, ...), traced by JAX; of
        what it does not use, nothing is computed.
      wait: see `parallel.map_batch`.

    Returns:
      batch -> what `combine` returns, as NumPy arrays.
    """

    def predict(variables: Mapping[str, Any], batch: Batch) -> Any:
        predictions = {
            name: each.predict(variables[name], batch["image"]) for name, each in trained.items()
        }
        return combine(predictions, batch)

    variables = {name: each.variables for name, each in trained.items()}
    return partial(parallel.map_batch(predict, wait=wait), variables)
