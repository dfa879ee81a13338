"""Test-time averaging: the mean of what a network says of an image and of its mirrored copies."""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax.errors import InputError

Arrays = Mapping[str, jax.Array]
Move = Callable[[jax.Array, int], jax.Array]  # of rows and columns; the second is the axis of rows

# Every subset of them, done in this order, is one symmetry: with the flips alone the four of a
# rectangle, with all three the eight of the square (the group D4).
_FLIPS: tuple[Move, ...] = (
    lambda x, axis: jnp.flip(x, axis),
    lambda x, axis: jnp.flip(x, axis + 1),
)
_MOVES: dict[str, tuple[Move, ...]] = {
    "none": (),
    "flips": _FLIPS,
    "d4": (*_FLIPS, lambda x, axis: jnp.swapaxes(x, axis, axis + 1)),
}


def count(tta: str) -> int:
    """Returns how often a network sees each image."""
    return 2 ** len(_MOVES[tta])


def average(
    function: Callable[[jax.Array], Arrays],
    image: jax.Array,
    tta: str,
    row_axes: Mapping[str, int | None],
) -> Arrays:
    """Averages what a function gives for an image and for its mirrored and turned copies.

    The copies are computed one after the other: the program holds the function once, so it takes no
    longer to compile, and hardly more memory.

    Args:
      function: of images (B, H, W, 3); gives float arrays by name.
      image: (B, H, W, 3).
      tta: "none", "flips" (as seen, mirrored left to right, top to bottom, and both) or "d4" (these
        and the same turned by 90 degrees).
      row_axes: by the name of an array, the axis of its rows, before that of its columns; None for
        arrays without pixels. Arrays with pixels are turned back before the mean is taken.

    Returns:
      The means, by name. With "none" what the function gives.

    Raises:
      InputError: images that are not square cannot be turned by 90 degrees.
    """
    moves = _MOVES[tta]
    if not moves:
        return function(image)
    height, width = image.shape[1:3]
    if tta == "d4" and height != width:
        raise InputError(
            f"config.tta is 'd4', which turns images by 90 degrees, but they have {width} x "
            f"{height} pixels: set --config.tta=flips, or give square ones"
        )

    def add(total: dict[str, jax.Array], chosen: jax.Array) -> tuple[dict[str, jax.Array], None]:
        result = function(_move(image, moves, chosen, 1))
        back = {}
        for name, value in result.items():
            axis = row_axes[name]
            # Each move undoes itself, so the same ones in the opposite order undo them all.
            back[name] = value if axis is None else _move(value, moves[::-1], chosen[::-1], axis)
        return {name: total[name] + value for name, value in back.items()}, None

    shapes = jax.eval_shape(function, image)
    zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    subsets = np.array(list(itertools.product((False, True), repeat=len(moves))))
    total, _ = jax.lax.scan(add, zeros, jnp.asarray(subsets))
    return {name: value / len(subsets) for name, value in total.items()}


def _move(x: jax.Array, moves: tuple[Move, ...], chosen: jax.Array, axis: int) -> jax.Array:
    for index, move in enumerate(moves):
        x = jnp.where(chosen[index], move(x, axis), x)
    return x
