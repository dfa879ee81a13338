"""The dense conditional random field of Krähenbühl and Koltun 2011, by mean field inference."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from wsss_jax.bilateral import Apply, Kernel, make_bilateral


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
      truncation, stride: of the bilateral kernel, see `bilateral.Kernel`.
      clip: the least probability that a class begins with in `refine_probabilities`.
    """

    iterations: int = 5
    gaussian_sxy: float = 3.0
    gaussian_weight: float = 30.0
    bilateral_sxy: float = 10.0
    bilateral_srgb: float = 20.0
    bilateral_weight: float = 50.0
    truncation: float = 3.0
    stride: int = 1
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

    Exact in float32 but for `truncation`, with a `stride` of 1. Images of a batch come one after
    the other, so that the memory of one is enough: half a GiB (`bilateral.HELD`) and some planes.

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
    size = planes.shape[1:]
    kernel = Kernel(crf.bilateral_sxy, crf.bilateral_srgb, crf.truncation, crf.stride)
    blur = _normalize(_make_gaussian(size, crf.gaussian_sxy), size)
    smooth = _normalize(make_bilateral(image, kernel), size)

    def iterate(_: int, q: jax.Array) -> jax.Array:
        # Softmax depends on differences only, so the last class needs no messages of its own.
        differences = q[:-1] - q[-1:]
        messages = crf.gaussian_weight * blur(differences)
        messages += crf.bilateral_weight * smooth(differences)
        return jax.nn.softmax(planes.at[:-1].add(messages), axis=0)

    q = jax.nn.softmax(planes, axis=0)
    if len(planes) > 1:
        q = lax.fori_loop(0, crf.iterations, iterate, q)
    return jnp.moveaxis(q, 0, -1)


def _normalize(apply: Apply, size: Sequence[int]) -> Apply:
    """Makes q -> D^-1/2 K D^-1/2 q of q -> K q, both of planes (C, H, W)."""
    scale = lax.rsqrt(apply(jnp.ones((1, *size), jnp.float32)))
    return lambda q: scale * apply(scale * q)


def _make_gaussian(size: Sequence[int], sxy: float) -> Apply:
    """Makes q -> K q of the kernel on positions: exact, as a product of one matrix per axis."""
    rows, columns = (_line(side, sxy) for side in size)

    def apply(q: jax.Array) -> jax.Array:
        return jnp.einsum("yz,czw,wx->cyx", rows, q, columns, precision=lax.Precision.HIGHEST)

    return apply


def _line(side: int, sxy: float) -> jax.Array:
    """Returns the (side, side) kernel of the positions on a line."""
    at = jnp.arange(side, dtype=jnp.float32) / sxy
    return jnp.exp(-0.5 * (at[:, None] - at) ** 2)
