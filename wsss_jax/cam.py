"""Class activation maps: Grad-CAM through `jax.vjp`, and plain CAM."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from wsss_jax.errors import InputError
from wsss_jax.models.layers import accumulator


def grad_cam(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, layers: Sequence[str]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Computes Grad-CAM (Eq. 6) of every class and several layers from one forward pass.

    The target is the logit, before the sigmoid. The map of a class is the sum of the layer's
    channels, each weighted by the spatial mean of the logit's gradient, without ReLU (Selvaraju et
    al. 2017, who apply one).

    Args:
      model: a module called as `model(images, train=False) -> (logits (B, C), taps)` that adds the
        collection "perturbations" to its taps, such as `ResNet38`.
      variables: its "params" and "batch_stats".
      images: (B, H, W, 3) scaled images.
      layers: names of taps.

    Returns:
      The maps, layer -> (B, C, h, w) float32 at the layer's resolution, and the logits (B, C).

    Raises:
      InputError: the model has no such tap.
    """

    def forward(perturbations: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        return model.apply({**variables, "perturbations": perturbations}, images, train=False)

    shapes = jax.eval_shape(forward, {})[1]
    for layer in layers:
        if layer not in shapes:
            raise InputError(
                f"layer {layer!r} has no output for Grad-CAM; choose from {sorted(shapes)}"
            )
    zeros = {layer: jnp.zeros(shapes[layer].shape, shapes[layer].dtype) for layer in layers}
    logits, pullback, taps = jax.vjp(forward, zeros, has_aux=True)
    num_classes = logits.shape[-1]
    one_hot = jnp.broadcast_to(
        jnp.eye(num_classes, dtype=logits.dtype)[:, None], (num_classes, *logits.shape)
    )
    (gradients,) = jax.vmap(pullback)(one_hot)
    maps = {}
    for layer in layers:
        dtype = accumulator(taps[layer].dtype)
        channel_weights = gradients[layer].mean(axis=(2, 3), dtype=dtype)
        maps[layer] = jnp.einsum(
            "bhwd,cbd->bchw",
            taps[layer].astype(dtype),
            channel_weights,
            precision=lax.Precision.HIGHEST,
        )
    return maps, logits


def class_activation_maps(
    features: jax.Array, class_weights: jax.Array, *, relu: bool
) -> jax.Array:
    """Computes class activation maps (Zhou et al. 2016; Eq. 7).

    At "bn7" they are Grad-CAM times the number of pixels.

    Args:
      features: (B, h, w, D), the feature map that is pooled ("bn7").
      class_weights: (D, C), the weights of the linear classifier on the pooled features.
      relu: clips the maps at zero, as the released code does for the segmentation of phase 1.

    Returns:
      (B, C, h, w) float32.
    """
    maps = jnp.einsum("bhwd,dc->bchw", features, class_weights, precision=lax.Precision.HIGHEST)
    return jax.nn.relu(maps) if relu else maps
