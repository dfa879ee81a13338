"""Class activation maps: Grad-CAM through `jax.vjp`, and plain CAM."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from wsss_jax.errors import InputError
from wsss_jax.masks import resize_maps
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
      InputError: the model has no such tap, or it is no feature map.
    """

    def forward(perturbations: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        return model.apply({**variables, "perturbations": perturbations}, images, train=False)

    taps = jax.eval_shape(forward, {})[1]
    shapes = {name: tap for name, tap in taps.items() if len(tap.shape) == 4}
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


def average_scales(
    open_layers: Callable[[jax.Array], Mapping[str, jax.Array]],
    image: jax.Array,
    scales: Sequence[float],
) -> dict[str, jax.Array]:
    """Averages activation maps over resized inputs, as AffinityNet and SC-CAM do.

    These (Ahn & Kwak 2018, Chang et al. 2020) add up maps of several scales before any
    normalization. Theirs are plain CAMs, which do not depend on the size of the input. Grad-CAM
    does: the gradient of a pooled logit is divided by the number of pixels. Maps are therefore
    multiplied by that number; else the smallest scale would decide alone.

    Args:
      open_layers: images (B, h, w, 3) uint8 -> maps (B, C, h / 8, w / 8) by layer.
      image: (B, H, W, 3) uint8.
      scales: factors of the size; sides are rounded to multiples of 8 pixels, at least 8. At 1 the
        image is as it is.

    Returns:
      The maps by layer: of the image itself (B, C, H / 8, W / 8) if 1 is the only scale, else
      means at its size (B, C, H, W), in units of plain CAMs.
    """
    if tuple(scales) == (1.0,):
        return dict(open_layers(image))
    size = image.shape[1:3]
    totals: dict[str, jax.Array] = {}
    for scale in scales:
        for layer, maps in open_layers(resize_image(image, scale)).items():
            maps = resize_maps(maps * (maps.shape[2] * maps.shape[3]), size)
            totals[layer] = totals[layer] + maps if layer in totals else maps
    return {layer: total / len(scales) for layer, total in totals.items()}


def resize_image(image: jax.Array, scale: float) -> jax.Array:
    """Resizes (B, H, W, 3) uint8 bilinearly, smoothed where it shrinks.

    Sides are rounded to multiples of 8 pixels, at least 8. With a scale of 1 the image stays.
    """
    if scale == 1:
        return image
    height, width = (max(8, round(side * scale / 8) * 8) for side in image.shape[1:3])
    shape = (image.shape[0], height, width, image.shape[3])
    resized = jax.image.resize(image.astype(jnp.float32), shape, "bilinear")
    return jnp.round(resized).astype(jnp.uint8)


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
