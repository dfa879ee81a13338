"""What is done to each example of a batch, by its own random numbers.

The random numbers of an example follow from the key of the step and the example's position in the
global batch, so they do not depend on the device that holds it. Each augmentation has a key of its
own, so that one that is switched on leaves the random numbers of the others as they are.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections

from wsss_jax.augmentation.blur import gaussian_blur
from wsss_jax.augmentation.color import jitter_color
from wsss_jax.augmentation.geometry import resample
from wsss_jax.augmentation.stain import jitter_stains
from wsss_jax.errors import InputError
from wsss_jax.training.task import DeviceBatch

# Folded into keys; large, as `jax.random.split` may give what folding in a small number gives.
_MOVE, _COLOR, _STAIN = 1_000_001, 1_000_002, 1_000_003


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses fields of `config.augment` that do not go together; see `config.validate`."""
    for field in ("scale", "paste_radius"):
        low, high = config.get(field, (0, 0))
        if low > high:
            raise InputError(
                f"{prefix}augment.{field} is {(low, high)}: give the smaller number first"
            )
    for field, changes in (
        ("affine", config.rotation or tuple(config.scale) != (1, 1)),
        ("color", config.brightness or config.contrast or config.saturation or config.hue),
        ("stain", config.stain_factor or config.stain_offset),
    ):
        if config[field] and not changes:
            raise InputError(
                f"{prefix}augment.{field} is {config[field]:g} but its amounts change nothing: set "
                f"--{prefix}augment.{field}=0, or amounts (see configs/base.py)"
            )
    shares = config.get("mosaic", 0), config.get("paste", 0)
    if sum(shares) > 1:
        raise InputError(
            f"{prefix}augment.mosaic and {prefix}augment.paste are {shares[0]:g} and "
            f"{shares[1]:g}, together over 1: they are shares of the same examples, lower one"
        )


def make_move(
    config: ml_collections.ConfigDict, excluded: int
) -> Callable[[jax.Array, DeviceBatch], DeviceBatch] | None:
    """Makes what turns and scales a batch before its pixels are counted, see `Task.prepare`.

    Args:
      config: the fields `config.augment`.
      excluded: the mask value of pixels without a label.

    Returns:
      key of the step, batch -> batch; None if nothing is to be moved.
    """
    if not config.transpose and not config.affine:
        return None
    return partial(_move, config, excluded)


def _move(
    config: ml_collections.ConfigDict, excluded: int, rng: jax.Array, batch: DeviceBatch
) -> DeviceBatch:
    def move_one(key: jax.Array, image: jax.Array, masks: jax.Array | None):
        transpose, move, angle, scale = jax.random.uniform(key, (4,), jnp.float32)
        if config.transpose:
            image = jnp.where(transpose < config.transpose, image.swapaxes(0, 1), image)
            if masks is not None:
                masks = jnp.where(transpose < config.transpose, masks.swapaxes(1, 2), masks)
        if config.affine:
            low, high = jnp.log(jnp.asarray(config.scale, jnp.float32))
            angle = jnp.radians(config.rotation) * (2 * angle - 1)
            # Uniform in the logarithm: as often twice as large as half as large.
            scale = jnp.exp(low + (high - low) * scale)
            chosen = move < config.affine  # else a rotation by 0, which gives every pixel back
            angle, scale = jnp.where(chosen, angle, 0), jnp.where(chosen, scale, 1)
            image, masks = resample(image, masks, angle, scale, excluded)
        return image, masks

    image, masks = batch["image"], batch.get("masks")
    if config.transpose and image.shape[1] != image.shape[2]:
        raise ValueError(f"only squares can be transposed, not {image.shape[1:3]} pixels")
    keys = _make_keys(jax.random.fold_in(rng, _MOVE), batch["position"])
    image, masks = jax.vmap(move_one)(keys, image, masks)
    return {**batch, "image": image} | ({} if masks is None else {"masks": masks})


def augment(
    rng: jax.Array,
    image: jax.Array,
    masks: jax.Array | None,
    config: ml_collections.ConfigDict,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """Flips, colors, stains and blurs each example by its own random numbers.

    Nothing of this moves a pixel out of the patch, so it can follow the counting of pixels.

    Args:
      rng: key of the step, the same on all devices.
      image: (B, H, W, 3) uint8.
      masks: (B, L, H, W) uint8 flipped along, or None.
      config: the fields `config.augment`.
      position: (B,) places in the global batch, so that the random numbers of an example do not
        depend on the device that holds it.

    Returns:
      image (B, H, W, 3) uint8, masks.
    """

    def augment_one(key: jax.Array, image: jax.Array, masks: jax.Array | None):
        horizontal, vertical, blur, sigma = jax.random.uniform(key, (4,))
        for axis, number, probability in (
            (1, horizontal, config.flip_horizontal),
            (0, vertical, config.flip_vertical),
        ):
            flip = number < probability
            image = jnp.where(flip, jnp.flip(image, axis), image)
            if masks is not None:
                masks = jnp.where(flip, jnp.flip(masks, axis + 1), masks)
        if config.color or config.stain:
            image = _color(key, image, config)
        if config.blur > 0:
            blurred = gaussian_blur(image, sigma * config.blur_radius)
            image = jnp.where(blur < config.blur, blurred, image)
        return image, masks

    return jax.vmap(augment_one)(_make_keys(rng, position), image, masks)


def _color(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Changes the colors, then the stains, of one image (H, W, 3) uint8, as its dice say."""
    x = image.astype(jnp.float32) / 255
    if config.color:
        chosen, *numbers = jax.random.uniform(jax.random.fold_in(key, _COLOR), (5,), jnp.float32)
        brightness, contrast, saturation, hue = (2 * number - 1 for number in numbers)
        changed = jitter_color(
            x,
            1 + config.brightness * brightness,
            1 + config.contrast * contrast,
            1 + config.saturation * saturation,
            config.hue * hue,
        )
        x = jnp.where(chosen < config.color, changed, x)
    if config.stain:
        drawn = jax.random.uniform(jax.random.fold_in(key, _STAIN), (7,), jnp.float32)
        factors = 1 + config.stain_factor * (2 * drawn[1:4] - 1)
        offsets = config.stain_offset * (2 * drawn[4:] - 1)
        x = jnp.where(drawn[0] < config.stain, jitter_stains(x, factors, offsets), x)
    return jnp.round(255 * x).astype(jnp.uint8)


def _make_keys(rng: jax.Array, position: jax.Array) -> jax.Array:
    """Makes the key of each example from that of the step."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, position)
