"""Batch normalization folded into the convolutions before it, for prediction.

With the running statistics, normalization multiplies each channel by a factor and adds an offset.
Where it follows a convolution directly, the kernel can be multiplied by the factor beforehand:
equal within rounding, and less to do with the features.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

from wsss_jax.models.layers import EPSILON

Scope = Mapping[str, Any]


def fold(variables: Scope, pairs: Mapping[str, str]) -> dict[str, Any]:
    """Folds normalizations into convolutions.

    Args:
      variables: of a network, "params" and "batch_stats".
      pairs: name of a convolution -> name of the normalization that alone uses what it gives, in
        the same module. Modules without such a normalization stay as they are.

    Returns:
      variables with which the network predicts the same: those convolutions have a bias, and those
      normalizations, which have none left, do nothing.
    """
    params, statistics = _fold_scope(variables["params"], variables["batch_stats"], pairs)
    return {**variables, "params": params, "batch_stats": statistics}


def _fold_scope(
    params: Scope, statistics: Scope, pairs: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    params, statistics = dict(params), dict(statistics)
    for conv, norm in pairs.items():
        if conv in params and norm in params:
            params[conv] = _fold_pair(params[conv], params.pop(norm), statistics.pop(norm))
    for name in params.keys() & statistics.keys():
        if "mean" not in statistics[name]:  # a module, not a normalization
            params[name], statistics[name] = _fold_scope(params[name], statistics[name], pairs)
    return params, statistics


def _fold_pair(conv: Scope, norm: Scope, statistics: Scope) -> dict[str, jax.Array]:
    factor = norm["scale"] * lax.rsqrt(statistics["var"] + EPSILON)
    bias = norm["bias"] - statistics["mean"] * factor + conv.get("bias", 0.0) * factor
    return {"kernel": conv["kernel"] * factor, "bias": bias}
