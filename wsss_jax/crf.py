"""The dense conditional random field of Krähenbühl and Koltun 2011, by mean field inference."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

_CHUNK = 2**22  # pairs of pixels that the full form holds at once: 16 MiB of float32
_HIGHEST = lax.Precision.HIGHEST

# q -> K q of a kernel K: planes (C, H, W) float32, of any C
Apply = Callable[[jax.Array], jax.Array]


class DenseCrf(NamedTuple):
    """How far and how strongly pixels pull each other to one class.

    Attributes:
      iterations: of mean field; 0 leaves the softmax of the unary energies.
      gaussian_sxy: standard deviation of the kernel on positions, pixels.
      gaussian_weight: its weight.
      bilateral_sxy: standard deviation of the positions in the kernel on positions and colors,
        pixels.
      bilateral_srgb: that of each color channel, gray values of 0 to 255.
      bilateral_weight: its weight.
      truncation: where the bilateral kernel ends, in `bilateral_sxy` along x and y. A kernel that
        wide or wider than about half of the image is not cut off.
      clip: the least probability that a class begins with in `refine_probabilities`.
    """

    iterations: int = 5
    gaussian_sxy: float = 3.0
    gaussian_weight: float = 30.0
    bilateral_sxy: float = 10.0
    bilateral_srgb: float = 20.0
    bilateral_weight: float = 50.0
    truncation: float = 3.0
    clip: float = 1e-5

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "DenseCrf":
        """Reads the fields `config.crf`."""
        return cls(**{name: config[name] for name in cls._fields})


def refine_probabilities(probabilities: jax.Array, image: jax.Array, crf: DenseCrf) -> jax.Array:
    """Refines class probabilities; see `refine`, whose unary energies are -log of them.

    Args:
      probabilities: (B, H, W, C) float32, of any positive sum at each pixel. A class that is 0 in
        the whole patch stays so; elsewhere `crf.clip` is the least. Where all are, each class is as
        probable as another.
      image: (B, H, W, 3) uint8 RGB.
      crf: the kernels and their weights.

    Returns:
      (B, H, W, C) float32 with sum 1 at every pixel.
    """
    possible = (probabilities > 0).any(axis=(1, 2), keepdims=True)
    possible |= ~possible.any(axis=-1, keepdims=True)
    total = probabilities.sum(axis=-1, keepdims=True)
    shares = probabilities / jnp.where(total > 0, total, 1)
    energies = -jnp.log(jnp.maximum(shares, crf.clip))
    return refine(jnp.where(possible, energies, jnp.inf), image, crf)


def refine(unary: jax.Array, image: jax.Array, crf: DenseCrf) -> jax.Array:
    """Refines class probabilities by the positions and colors of the pixels.

    Mean field of a CRF in which every pixel is a neighbor of every other (Krähenbühl & Koltun 2011,
    Algorithm 1) with Potts compatibility: in each iteration
    Q = softmax(-unary + sum over both kernels of weight * K Q), from Q = softmax(-unary).
    Both kernels are Gaussian, exp(-d^2 / 2), and normalized as D^-1/2 K D^-1/2 with D the sums of
    K's rows. As in the authors' code, and unlike in the paper's equations, K has its diagonal: a
    pixel sends a message to itself, too. The weights in use were chosen with it.

    Computed exactly but for `truncation`, in float32 and in memory that grows with the number of
    pixels; images of a batch one after the other.

    Args:
      unary: (B, H, W, C) float32 energies, -log of probabilities. A class with +inf cannot win
        there; at every pixel one class at least is finite.
      image: (B, H, W, 3) uint8 RGB.
      crf: the kernels and their weights.

    Returns:
      (B, H, W, C) float32 probabilities, with sum 1 at every pixel.
    """
    if not crf.iterations:
        return jax.nn.softmax(-unary)
    return lax.map(lambda pair: _refine_one(pair[0], pair[1], crf), (unary, image))


def _refine_one(unary: jax.Array, image: jax.Array, crf: DenseCrf) -> jax.Array:
    """Refines one image: (H, W, C) and (H, W, 3) uint8 -> (H, W, C)."""
    planes = -jnp.moveaxis(unary, -1, 0)
    blur = _normalize(_gaussian_kernel(planes.shape[1:], crf.gaussian_sxy), planes.shape[1:])
    smooth = _normalize(_bilateral_kernel(image, crf), planes.shape[1:])

    def iterate(_: int, q: jax.Array) -> jax.Array:
        messages = crf.gaussian_weight * blur(q) + crf.bilateral_weight * smooth(q)
        return jax.nn.softmax(planes + messages, axis=0)

    q = lax.fori_loop(0, crf.iterations, iterate, jax.nn.softmax(planes, axis=0))
    return jnp.moveaxis(q, 0, -1)


def _normalize(apply: Apply, size: Sequence[int]) -> Apply:
    """Makes q -> D^-1/2 K D^-1/2 q of q -> K q, both of planes (C, H, W)."""
    scale = lax.rsqrt(apply(jnp.ones((1, *size), jnp.float32)))
    return lambda q: scale * apply(scale * q)


def _gaussian_kernel(size: Sequence[int], sxy: float) -> Apply:
    """Makes q -> K q of the kernel on positions: exact, as a product of one matrix per axis."""
    rows, columns = (_line(side, sxy) for side in size)

    def apply(q: jax.Array) -> jax.Array:
        return jnp.einsum("yz,czw,wx->cyx", rows, q, columns, precision=_HIGHEST)

    return apply


def _line(side: int, sxy: float) -> jax.Array:
    """Returns the (side, side) kernel of the positions on a line."""
    at = jnp.arange(side, dtype=jnp.float32) / sxy
    return jnp.exp(-0.5 * (at[:, None] - at) ** 2)


def _bilateral_kernel(image: jax.Array, crf: DenseCrf) -> Apply:
    """Makes q -> K q of the kernel on positions and colors, in the cheaper of two forms."""
    height, width = image.shape[:2]
    colors = jnp.moveaxis(image, -1, 0).astype(jnp.float32) * (math.sqrt(0.5) / crf.bilateral_srgb)
    reach = math.ceil(crf.truncation * crf.bilateral_sxy)
    down, across = (min(reach, side - 1) for side in (height, width))
    if (down + 1) * (2 * across + 1) < height * width:
        return _windowed(colors, (down, across), crf.bilateral_sxy)
    return _full(colors, crf.bilateral_sxy)


def _windowed(colors: jax.Array, reach: tuple[int, int], sxy: float) -> Apply:
    """Applies a kernel by shifts of the image, each for both directions."""
    _, height, width = colors.shape
    down, across = reach
    margin = ((0, 0), (0, down), (across, across))
    padded = jnp.pad(colors, margin, constant_values=1e4)  # a color that is far from all

    def apply(q: jax.Array) -> jax.Array:
        channels = q.shape[0]
        q_padded = jnp.pad(q, margin)
        here = (0, 0, across)

        def add(index: jax.Array, total: jax.Array) -> jax.Array:
            dy, dx = index // (2 * across + 1), index % (2 * across + 1)
            there = (0, dy, dx)
            other = lax.dynamic_slice(padded, there, colors.shape)
            x, y = (dx - across).astype(jnp.float32), dy.astype(jnp.float32)
            distance = (x * x + y * y) * (0.5 / sxy**2)
            kernel = jnp.exp(-jnp.square(colors - other).sum(axis=0) - distance)
            shape = (channels, height, width)
            come = kernel * lax.dynamic_slice(q_padded, there, shape)
            total = lax.dynamic_update_slice(
                total, lax.dynamic_slice(total, here, shape) + come, here
            )
            return lax.dynamic_update_slice(
                total, lax.dynamic_slice(total, there, shape) + kernel * q, there
            )

        # From the first shift after none, to the right, on; those before it are their opposites.
        first, last = across + 1, (down + 1) * (2 * across + 1)
        total = lax.fori_loop(first, last, add, jnp.zeros_like(q_padded))
        return q + total[:, :height, across : across + width]

    return apply


def _full(colors: jax.Array, sxy: float) -> Apply:
    """Applies a kernel as a matrix of all pairs of pixels, some rows at a time."""
    _, height, width = colors.shape
    pixels = height * width
    y, x = (
        axis * (math.sqrt(0.5) / sxy)
        for axis in jnp.mgrid[:height, :width].astype(jnp.float32).reshape(2, pixels)
    )
    features = jnp.stack([y, x, *colors.reshape(3, pixels)])
    rows = max(1, min(pixels, _CHUNK // pixels))
    steps = -(-pixels // rows)

    def apply(q: jax.Array) -> jax.Array:
        flat = q.reshape(q.shape[0], pixels).T

        def take(step: jax.Array, total: jax.Array) -> jax.Array:
            start = jnp.minimum(step * rows, pixels - rows)  # the last ones overlap
            some = lax.dynamic_slice(features, (0, start), (5, rows))
            squares = sum((some[i][:, None] - features[i]) ** 2 for i in range(5))
            part = jnp.dot(jnp.exp(-squares), flat, precision=_HIGHEST)
            return lax.dynamic_update_slice(total, part, (start, 0))

        total = lax.fori_loop(0, steps, take, jnp.zeros_like(flat))
        return total.T.reshape(q.shape)

    return apply
