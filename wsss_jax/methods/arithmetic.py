"""What a network computes in, and how, as its run says."""

from typing import Any

import jax.numpy as jnp
import ml_collections

from wsss_jax import config as config_lib
from wsss_jax.models.lowering import Lowering, parse_choice

TENSORFLOAT32 = "tensorfloat32"


def choose(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the attributes `dtype` and `lowering` of a network.

    Args:
      config: of a method. Of `precision`, "tensorfloat32" has arrays of float32, whose products in
        convolutions are rounded to TF32 on accelerators.
    """
    is_rounded = config.precision == TENSORFLOAT32
    choices = tuple(map(parse_choice, config.convolutions.ways))
    return {
        "dtype": jnp.dtype("float32" if is_rounded else config.precision),
        "lowering": Lowering(is_rounded, choices),
    }


def set_precision(
    config: ml_collections.ConfigDict, precision: str
) -> ml_collections.FrozenConfigDict:
    """Returns the configuration of a trained run with another precision; "" keeps that it has.

    The ways of its convolutions were chosen for the precision that it was trained in: in another
    one the rules in the code decide.
    """
    if precision in ("", config.precision):
        return config_lib.freeze(config)
    return config_lib.fill(config, {"precision": precision, "convolutions.ways": ()})
